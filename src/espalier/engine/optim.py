"""The optimisers by name, and the learning rate as a plain function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers.optimization import Adafactor, get_scheduler

from espalier.errors import UserError


@dataclass(frozen=True)
class OptimizerSettings:
    """What is set of an optimiser.

    Attributes:
        kind: adamw: AdamW (Loshchilov & Hutter 2019). adamw_8bit: the same with its means in 8 bits, block by block
            (Dettmers et al. 2022), by bitsandbytes. adafactor: Adafactor (Shazeer & Stern 2018) at the given rate,
            which keeps a row and a column for a matrix. sgd: without momentum.
        learning_rate: the highest rate.
        weight_decay: of matrices; vectors (biases, norms) do not decay.
        betas, eps: AdamW's.
        loraplus_ratio: LoRA's B matrices learn at so many times the rate (LoRA+, Hayou et al. 2024, eq. 4).
    """

    kind: str
    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    loraplus_ratio: float = 1.0


def optimizer_of(
    module: nn.Module, settings: OptimizerSettings, parts: Sequence[str] = ()
) -> torch.optim.Optimizer:
    """The optimiser of a module's trainable parameters; ``lr_scale`` of a group times the step's rate is its own.

    Args:
        parts: names of submodules whose parameters make groups of their own, with the name as ``part``; of the other
            groups that is "".

    Raises:
        ValueError: nothing is trainable.
    """
    groups, rate = list(_groups(module, settings, parts)), settings.learning_rate
    if not groups:
        raise ValueError("no parameter is trainable: check finetuning_type and freeze_ratio")
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    if settings.kind == "adafactor":
        factors: Any = Adafactor  # untyped
        return factors(groups, lr=rate, scale_parameter=False, relative_step=False)  # type: ignore[no-any-return]
    if settings.kind == "adamw_8bit":
        eight: Any = import_module("bitsandbytes.optim").AdamW8bit  # untyped
        return eight(groups, lr=rate, betas=settings.betas, eps=settings.eps)  # type: ignore[no-any-return]
    assert settings.kind == "adamw"
    # One kernel for all parameters; on a CPU 2-4 times the speed of the loop over them.
    return torch.optim.AdamW(groups, lr=rate, betas=settings.betas, eps=settings.eps, fused=True)


def _groups(module: nn.Module, settings: OptimizerSettings, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            part = next((part for part in parts if name.startswith(f"{part}.")), "")
            scale = settings.loraplus_ratio if "lora_B" in name else 1.0
            groups.setdefault((part, scale, parameter.dim() >= 2), []).append(parameter)
    for (part, scale, is_matrix), parameters in groups.items():
        decay = settings.weight_decay if is_matrix else 0.0
        yield {"params": parameters, "weight_decay": decay, "lr_scale": scale, "part": part}


def learning_rates(
    kind: str,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    settings: Mapping[str, Any],
    waits: int = 0,
) -> Callable[[int], float]:
    """The rate of a step (0 is the first): a linear rise, then transformers' schedule of that name.

    The first step already learns, at ``peak / warmup_steps``; transformers' own rise begins with a step of rate 0. The
    result is a pure function, so that there is no scheduler whose state could be lost or stepped twice.

    Args:
        kind, settings: one of transformers' schedules and its own arguments.
        peak: the highest rate.
        total_steps: at least `warmup_steps`.
        waits: steps at the start of rate 0; the schedule is that of the steps after them.

    Raises:
        UserError: settings that the schedule cannot use.
    """
    total_steps = max(total_steps - waits, 0)
    if kind == "warmup_stable_decay":
        settings = {"num_decay_steps": max(1, total_steps // 10), **settings}
    try:
        if warmup_steps + settings.get("num_decay_steps", 0) > max(total_steps, warmup_steps):
            raise ValueError(f"with {warmup_steps} steps of warmup they do not fit into {total_steps}")
        scheduler = get_scheduler(
            kind,
            torch.optim.SGD([torch.zeros(1)], lr=peak or 1.0),  # they measure a lowest rate by its own one
            num_warmup_steps=warmup_steps,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=dict(settings),
        )
        (share,) = scheduler.lr_lambdas
        ends = [float(share(step)) for step in (min(warmup_steps, total_steps), total_steps)]
        if not all(math.isfinite(end) and end >= 0 for end in ends):
            raise ValueError(f"the rate goes from {ends[0]:g} to {ends[1]:g} times the highest")
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"lr_scheduler_kwargs: {kind} cannot use {dict(settings)}: {error}. Change them, or remove them."
        ) from error

    def rate(step: int) -> float:
        step -= waits
        if step < 0:
            return 0.0
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        return peak * float(share(min(step, total_steps)))

    return rate
