"""Seconds of a step: its products at a stated share of the peak, what processes send each other, what goes over the bus.

Legend: P parameters, T trained ones, N processes. FLOP of products are Kaplan et al.'s (2020, section 2.1): two for each
parameter and token forward, as many for what is handed back to the layer below, and as many again for trained weights.
"""

from __future__ import annotations

from espalier.plan.devices import Device
from espalier.plan.memory import Method, ModelSizes

EFFICIENCY = 0.4
"""Of the peak that products reach in training; what well-kept frameworks show on a GPU (Narayanan et al. 2021: 0.3 to 0.5)."""

DECODE_EFFICIENCY = 0.5
"""Of the memory's bandwidth that sampling reaches."""

BUS = 12e9
"""Bytes a second between a GPU and the machine's memory, PCIe 3 with pinned memory or 4 without."""

HOST = 20e9
"""Bytes a second that Adam reaches in the machine's memory; it reads and writes 28 a parameter."""


def flops(model: ModelSizes, tokens: int, length: int, *, checkpointing: bool) -> float:
    """Of forward and backward over so many tokens in rows of `length`."""
    forward = 2.0 * model.parameters + 2.0 * model.layers * length * model.width
    backward = forward + 2.0 * model.trained
    return tokens * (forward * (2 if checkpointing else 1) + backward)


def step_seconds(
    model: ModelSizes, method: Method, device: Device, tokens: int, micro_batches: int
) -> dict[str, float]:
    """Of one optimiser step on one device, by what takes them.

    Args:
        tokens: of a step on one device.
        micro_batches: of a step on one device.
    """
    n, width = method.processes, 2 if method.bits == 16 else 4
    work = flops(model, tokens, method.length, checkpointing=method.checkpointing)
    share = (n - 1) / n
    sent = 2 * share * width * model.trained
    if method.shards > 1:
        sent = (
            micro_batches * (3 if method.checkpointing else 2) * share * width * model.parameters + sent / 2
        )
    parts = {
        "products": work / (EFFICIENCY * device.peak(method.bits)),
        "between processes": sent / device.link if n > 1 else 0.0,
        "bus": 0.0,
    }
    if method.offload != "none":
        moved = 2 * width * model.trained / n
        if method.offload == "all":
            moved += 2 * micro_batches * width * model.parameters / n
        parts["bus"] = moved / BUS + 28 * model.trained / n / HOST
    return parts


def sampling_seconds(
    model: ModelSizes, method: Method, device: Device, answers: int, at_a_time: int, new_tokens: int
) -> float:
    """Of answers on one device: each step of decoding reads all weights once."""
    width = 2 if method.bits == 16 else 4
    rounds = -(-answers // max(1, at_a_time))
    reading = width * model.parameters / (DECODE_EFFICIENCY * device.bandwidth)
    working = 2.0 * model.parameters * min(answers, at_a_time) / (EFFICIENCY * device.peak(method.bits))
    return rounds * new_tokens * max(reading, working)
