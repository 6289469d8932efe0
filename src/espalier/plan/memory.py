"""Bytes on a device, item by item: what a run must hold, and what the allocator will have reserved.

Legend: P parameters, T trained ones, N processes. Sizes of ZeRO are Rajbhandari et al.'s 2020 (section 3 and 5), those of
checkpointing Chen et al.'s 2016. What a library needs beside them was fitted to runs that were measured (`FITTED`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class ModelSizes:
    """A model as memory sees it.

    Attributes:
        parameters, trained: P and T.
        largest: parameters of its largest tensor, which is whole on every device while it is used.
        frozen_bytes: of all its frozen weights as they are stored, in few bits or 16, say.
        layers: blocks that checkpointing keeps the input of.
        width: of the hidden states.
        words: rows of the head.
        row: bytes that a forward keeps for one row of tokens.
        casts: bytes of weights cast to 16 bits, with autocast.
    """

    parameters: int
    trained: int
    largest: int
    frozen_bytes: int
    layers: int
    width: int
    words: int
    row: int = 0
    casts: int = 0


@dataclass(frozen=True)
class Method:
    """How a model is trained.

    Attributes:
        strategy: single, ddp, fsdp, zero1, zero2 or zero3.
        processes: N.
        offload: none, optimizer or all.
        rows, length: of a micro-batch; length is the longest row's.
        bits: 32 or 16, of the products.
        moments: bytes of the optimiser's state a trained parameter: 8 of AdamW, 2 of 8-bit AdamW.
        checkpointing: whether the inside of blocks is computed again.
        logits: tokens whose logits are held at a time.
        bucket: elements of ZeRO's buckets.
    """

    strategy: str = "single"
    processes: int = 1
    offload: str = "none"
    rows: int = 1
    length: int = 512
    bits: int = 16
    moments: int = 8
    checkpointing: bool = False
    logits: int = 512
    bucket: int = 500_000_000

    @property
    def zero(self) -> int:
        """The stage of ZeRO; 0: none of DeepSpeed's."""
        return int(self.strategy[-1]) if self.strategy.startswith("zero") else 0

    @property
    def shards(self) -> int:
        """Among how many processes weights are cut."""
        return self.processes if self.strategy in ("fsdp", "zero3") else 1


@dataclass(frozen=True)
class Fitted:
    """What was fitted.

    Attributes:
        context: bytes of the driver's context and the libraries' kernels.
        reserved: the allocator's blocks over what is held, by (ZeRO's stage, whether blocks are checkpointed).
        needed: the same at the least, where memory is short and the allocator gives blocks back.
        transit: bytes a parameter of a process's own part on their way to the CPU's optimiser, in stage 3.
        bucket: reserved bytes an element of a bucket, by stage; `least` of them are needed.
    """

    context: int = 550 * MIB
    reserved: tuple[tuple[int, bool, float], ...] = (
        (0, False, 1.0),
        (0, True, 1.0),
        (2, False, 1.5),
        (2, True, 1.3),
        (3, False, 1.45),
        (3, True, 1.2),
    )
    needed: float = 1.08
    transit: float = 0.4
    bucket: tuple[tuple[int, float], ...] = ((2, 22.0), (3, 7.0))
    least: float = 4.0


CPU_CONTEXT = 560 * MIB
"""What a process of Espalier takes before it has a model: Python, torch, transformers and what they import."""

FITTED = Fitted()
"""To the 27 runs of the first predecessor that did not run out of memory (V100 16 GB, DeepSpeed 0.8)."""


def held(model: ModelSizes, method: Method) -> dict[str, int]:
    """Bytes of each item on one device at the peak of a step, without what the allocator wastes."""
    trained, frozen = model.trained, model.parameters - model.trained
    n, zero = method.processes, method.zero
    wide = 2 if zero and method.bits == 16 else 4
    items = {
        "weights": wide * trained + (model.frozen_bytes if frozen else 0),
        "gradients": wide * trained,
        "optimizer": (method.moments + (4 if wide == 2 else 0)) * trained,
        "casts": 0 if zero else model.casts,
        "activations": _activations(model, method),
        "logits": 12 * method.logits * model.words if method.bits == 16 else 8 * method.logits * model.words,
        "buckets": 0,
    }
    if method.strategy == "ddp":
        items["buckets"] = items["gradients"]
    if zero or method.strategy == "fsdp":
        items["optimizer"] //= n
    if zero >= 2 or method.strategy == "fsdp":
        items["gradients"] //= n
    if method.shards > 1 or method.strategy == "zero3":
        items["weights"] //= n
        items["casts"] //= n
        items["buckets"] += (
            4 * 2 * model.largest
        )  # a tensor and its gradient whole, and those before and behind it
    if zero in (2, 3):
        items["buckets"] += int(_least_bucket(method))
    if method.offload != "none":
        items["optimizer"] = 0
        items["gradients"] = wide * model.largest if zero == 2 else 0
    if method.offload == "all":
        items["weights"] = 0
    return items


def _least_bucket(method: Method) -> float:
    return FITTED.least * method.bucket


def _activations(model: ModelSizes, method: Method) -> int:
    if not method.checkpointing:
        return method.rows * model.row
    width = 2 if method.bits == 16 else 4
    inputs = model.layers * method.rows * method.length * model.width * width
    return inputs + method.rows * model.row // max(1, model.layers)


def needed(items: Mapping[str, int], model: ModelSizes, method: Method, *, cpu: bool = False) -> int:
    """Bytes without which a step runs out of memory.

    Args:
        items: as `held` gives them; of several models their sums.
        model: all that is trained, for what is under way to the CPU's optimiser.
        cpu: whether the device is the machine itself: its allocator wastes little, and `CPU_CONTEXT` stands for the driver's.
    """
    if cpu:
        return sum(items.values()) + CPU_CONTEXT
    return int(FITTED.needed * sum(items.values())) + FITTED.context + _transit(model, method)


def reserved(items: Mapping[str, int], model: ModelSizes, method: Method, capacity: int) -> int:
    """Bytes that nvidia-smi will show of a run that fits into `capacity`."""
    slack = {(zero, kept): factor for zero, kept, factor in FITTED.reserved}
    factor = slack.get((method.zero, method.checkpointing), FITTED.needed)
    buckets = dict(FITTED.bucket).get(method.zero, 0.0) * method.bucket
    extra = buckets - _least_bucket(method) if method.zero >= 2 else 0.0
    shown = factor * sum(items.values()) + max(0.0, extra) + FITTED.context + _transit(model, method)
    return int(min(shown, max(capacity, needed(items, model, method))))


def _transit(model: ModelSizes, method: Method) -> int:
    if method.zero == 3 and method.offload != "none":
        return int(FITTED.transit * model.trained / method.processes)
    return 0


def host_bytes(model: ModelSizes, method: Method) -> int:
    """Bytes in the machine's memory of what is offloaded, of all processes of one machine."""
    if method.offload == "none":
        return 0
    wide = 2 if method.bits == 16 else 4
    state = (method.moments + 4 + wide) * model.trained
    return state + (wide * model.parameters if method.offload == "all" else 0)


def at_start(parameters: int, *, bytes_each: int) -> int:
    """Bytes of whole models on the device before they are cut: a trainer that moves them there first, as Espalier does."""
    return bytes_each * parameters + FITTED.context
