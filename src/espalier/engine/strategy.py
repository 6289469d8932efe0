"""One process, DDP, FSDP or ZeRO: the accelerator, a module made ready for it, and a step's backward and clipping.

What a strategy is follows from the class of the prepared module, never from what was asked for, so that nothing here
can take one for another. FSDP and ZeRO are started here and not by accelerate, which has neither on a machine
without a GPU and hands out DDP in their place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from espalier.engine import fsdp, group, zero
from espalier.errors import UserError
from espalier.processor import Precision

if not torch.cuda.is_available():
    # DeepSpeed asks at import, which PEFT and accelerate do for us, and warns when nobody has said.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

_OF_LAUNCHERS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
_PRECISION = "ACCELERATE_MIXED_PRECISION"
_ASKED_BY_LAUNCHER = os.environ.get(_PRECISION)
"""accelerate keeps what one run has asked for in the environment, where the next one would find it."""

ZERO = zero.STAGES
SHARDED = ("fsdp", "zero3")
"""Strategies under which no process holds the whole model."""


@dataclass(frozen=True)
class Wanted:
    """A strategy that is asked for, decided and possible.

    Attributes:
        kind: single, ddp, fsdp, zero1, zero2 or zero3.
        precision: of the matrix products.
        offload: none, optimizer or all (ZeRO and FSDP only).
        hidden: the width of the model; sizes of ZeRO-3 follow from it.
        deepspeed: a whole configuration of the user's own, without "auto"; else one is built.
    """

    kind: str
    precision: Precision = "fp32"
    offload: str = "none"
    hidden: int = 1024
    deepspeed: dict[str, Any] | None = None


def decided(strategy: str, processes: int, stage: int | None = None) -> str:
    """Which strategy is meant: single, ddp, fsdp, zero1, zero2 or zero3.

    Args:
        strategy: the option; auto is the stage of a DeepSpeed file, else single for one process and ddp for several.
        processes: of the run.
        stage: of a DeepSpeed file of the user's own, if there is one.

    Raises:
        UserError: it contradicts the file, or cannot be with so many processes.
    """
    own = None if stage is None else f"zero{stage}"
    if strategy == "auto":
        return own or ("single" if processes == 1 else "ddp")
    if own is not None and strategy != own:
        raise UserError(
            f"strategy: {strategy}, and the file that `deepspeed` names is of stage {stage}. Remove one."
        )
    if strategy == "single" and processes > 1:
        raise UserError(
            f"strategy: single is one process, and this run has {processes}. Set strategy: ddp (or auto), or start one "
            "process."
        )
    if strategy == "ddp" and processes == 1:
        raise UserError(
            "strategy: ddp is a copy of the model a process, and this run has one process. Set num_processes: 2 or more, "
            "or strategy: single (or auto)."
        )
    return strategy


def check_offload(kind: str, offload: str, *, own: bool) -> None:
    """Refuse an `offload` that the strategy has not.

    Args:
        kind: as `decided` gives it.
        own: whether the user has a DeepSpeed file, which says that itself.

    Raises:
        UserError: nothing of it would leave the device, or more than the strategy can move.
    """
    if offload == "none":
        return
    if own:
        raise UserError(
            f"offload: {offload} beside `deepspeed`: write it into that file, or remove one of the two."
        )
    able = {"zero1": ("optimizer",), "zero2": ("optimizer",), "zero3": ("optimizer", "all"), "fsdp": ("all",)}
    if kind not in able:
        raise UserError(
            f"offload: {offload} with strategy: {kind} is not possible. Set strategy: fsdp, zero2 or zero3."
        )
    if offload not in able[kind]:
        raise UserError(
            f"offload: {offload} with strategy: {kind} is not possible. Set offload: {able[kind][0]}, or strategy: zero3, "
            "which can move the optimizer alone or all."
        )


def make_accelerator(precision: Precision, *, cpu: bool | None = None) -> Accelerator:
    """The accelerator of a run: its place among the processes, its device, and its precision.

    Args:
        precision: of the matrix products.
        cpu: stay on the CPU; None = when there is no GPU.

    Raises:
        UserError: the launcher asks for an engine that only the run's own options can ask for.
    """
    cpu = not torch.cuda.is_available() if cpu is None else cpu
    for key in _OF_LAUNCHERS:
        if os.environ.get(key, "false").lower() == "true":
            engine = key.rpartition("_")[2]
            raise UserError(
                f"the launcher asks for {engine} ({key}=true), and a run says that itself. Set strategy in the run's "
                "options, and start it without that."
            )
    _forget_earlier_runs()
    group.join(cpu=cpu)
    return Accelerator(cpu=cpu, mixed_precision="no" if precision == "fp32" else precision)


def _forget_earlier_runs() -> None:
    """Let this process have another precision than its last run had, which accelerate would refuse.

    The group of processes stays as it is.
    """
    AcceleratorState._reset_state()
    GradientState._reset_state()
    if _ASKED_BY_LAUNCHER is None:
        os.environ.pop(_PRECISION, None)
    else:
        os.environ[_PRECISION] = _ASKED_BY_LAUNCHER


def prepare(
    accelerator: Accelerator,
    wanted: Wanted,
    module: nn.Module,
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A module wrapped (or cut), and the optimiser of what is its parameters then.

    Args:
        module: whole, the same on every rank.
        optimizer_of: makes the optimiser of a module.

    Raises:
        UserError: DeepSpeed is asked for and not installed.
    """
    device = accelerator.device
    if wanted.kind in ZERO:
        needs_deepspeed(wanted.kind)
        group.join(cpu=device.type == "cpu", alone=True)
        module = module.to(device)
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        settings = wanted.deepspeed or zero.config(
            ZERO[wanted.kind], wanted.precision, wanted.offload, wanted.hidden, trained
        )
        try:
            engine = zero.start(module, optimizer_of(module), settings)
        except (AssertionError, ValueError) as error:
            if wanted.deepspeed is None:
                raise
            raise UserError(f"deepspeed: DeepSpeed refuses the file: {error}. Correct it.") from error
        return engine, engine.optimizer
    if wanted.kind == "fsdp":
        group.join(cpu=device.type == "cpu", alone=True)
        # It stays unwrapped in this mode, but computes in the run's precision.
        module = accelerator.prepare_model(module, evaluation_mode=True)
        module = fsdp.cut(module, device.type, offload=wanted.offload == "all")
        return module, accelerator.prepare_optimizer(optimizer_of(module))
    module, optimizer = accelerator.prepare(module, optimizer_of(module))
    return module, optimizer


def needs_deepspeed(strategy: str) -> None:
    """Raises UserError where DeepSpeed is not installed."""
    try:
        import deepspeed as _installed  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"strategy: {strategy} needs DeepSpeed. Install it: pip install 'espalier-llm[deepspeed]'"
        ) from error


def kind_of(accelerator: Accelerator, module: nn.Module) -> str:
    """Which strategy a prepared module is under in truth."""
    if zero.is_zero(module):
        return f"zero{module.zero_optimization_stage()}"  # type: ignore[operator]
    if fsdp.is_cut(module):
        return "fsdp"
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return "ddp"
    return "single"


def backward(accelerator: Accelerator, module: nn.Module, loss: Tensor, *, last: bool) -> None:
    """One micro-batch of a step; the ranks have exchanged all gradients after the last one."""
    if zero.is_zero(module):
        zero.backward(module, loss, last=last)
    else:
        accelerator.backward(loss)


def apart(accelerator: Accelerator, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Around the forward and backward of a micro-batch: nothing is exchanged before the last one, where that is possible.

    Sharded gradients have nowhere to wait, so they are exchanged each time.
    """
    accelerator.gradient_state._set_sync_gradients(last)
    if last or not isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext()
    waiting: AbstractContextManager[Any] = accelerator.no_sync(module)
    return waiting


Parts = Sequence[tuple[list[nn.Parameter], list[int], float]]
"""Parameters that are clipped together, as they are and as numbers of the optimiser's groups, with the largest norm."""


def clip_gradients(accelerator: Accelerator, module: nn.Module, max_norm: float, parts: Parts = ()) -> float:
    """Scale the gradients down to `max_norm` (0: leave them) and return the norm before.

    Args:
        parts: each is clipped to its own norm, in place of all to `max_norm`.
    """
    if zero.is_zero(module):
        return _clip_zero(module, max_norm, [(groups, limit) for _, groups, limit in parts])
    together = [(parameters, limit) for parameters, _, limit in parts]
    if not together:
        together = [([p for p in module.parameters() if p.requires_grad], max_norm)]
    norms = []
    for at, (parameters, limit) in enumerate(together):
        # The first call undoes fp16's scale of all gradients, and may do so once a step only.
        clip = nn.utils.clip_grad_norm_ if at else accelerator.clip_grad_norm_
        norm = clip(parameters, limit if limit > 0 else math.inf)
        if norm is not None:
            norms.append(float(fsdp.whole(norm)))
    return math.hypot(*norms)


def _clip_zero(engine: nn.Module, max_norm: float, parts: list[tuple[list[int], float]]) -> float:
    norms = zero.norms_of_groups(engine)
    for groups, limit in parts or [(list(range(len(norms))), max_norm)]:
        norm = math.hypot(*(norms[number] for number in groups))
        if limit > 0 and norm > limit and math.isfinite(norm):
            for number in groups:
                zero.scale_group(engine, number, limit / (norm + 1e-6))  # as torch does it
    return math.hypot(*norms)


def update(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The optimiser's step, by the gradients as they are."""
    if zero.is_zero(module):
        module.step()  # type: ignore[operator]
    else:
        optimizer.step()
