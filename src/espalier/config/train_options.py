"""Keys of the training itself: how long, how fast, by which optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from espalier.config.option import Options, option
from espalier.config.stage_defaults import EPOCHS, LEARNING_RATE

SCHEDULES: dict[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": ("num_decay_steps", "decay_type", "min_lr_ratio", "num_cycles"),
    "constant": (),
    "constant_with_warmup": (),
}
"""transformers' schedules, and what `lr_scheduler_kwargs` may set of each; the warmup is set by its own keys."""

if TYPE_CHECKING:
    ScheduleName = str
else:  # what help, documents and the check of a file show are the rows of the table
    ScheduleName = Literal[tuple(SCHEDULES)]


def in_steps(count: int | float, total: int) -> int:
    """A count of steps, or a share of `total` below 1 (rounded up), as a number of steps.

    >>> in_steps(500, 90), in_steps(0.25, 90), in_steps(0, 90)
    (500, 23, 0)
    """
    return math.ceil(count * total) if count < 1 else int(count)


def step_count_problems(options: Options, *keys: str) -> list[str]:
    """A sentence for each of the keys that is neither a whole number of steps nor a share."""
    values = {key: getattr(options, key) for key in keys}
    return [
        f"`{key}` is {value}; wanted a whole number of steps, or a share of all steps below 1."
        for key, value in values.items()
        if value is not None and value > 1 and value != int(value)
    ]


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """How long, how much at a time, and how fast to learn."""

    learning_rate: float = option(LEARNING_RATE, "The highest learning rate.", min=0)
    lr_scheduler_type: ScheduleName = option("linear", "How the learning rate falls after the warmup.")
    lr_scheduler_kwargs: dict[str, Any] = option(
        {},
        "What the schedule takes besides, under transformers' names, such as min_lr_rate: 0.1 (num_decay_steps: a tenth "
        "of all steps where it is not given).",
    )
    warmup_ratio: float = option(
        0.0, "The share of all steps in which the learning rate rises from 0.", min=0, max=1
    )
    warmup_steps: int | float = option(
        0,
        "The same as a number of steps (below 1: a share of all); above 0 it overrides warmup_ratio.",
        min=0,
    )
    max_grad_norm: float = option(1.0, "Clip the gradient's norm to this; 0: no clipping.", min=0)
    num_train_epochs: float = option(EPOCHS, "How often the data is seen; max_steps overrides it.", above=0)
    max_steps: int | None = option(None, "Stop after so many optimiser steps.", min=1)
    tokens_per_step: int | None = option(
        None, "At most so many tokens an optimiser step, over all processes; instead of a batch size.", min=1
    )
    per_device_train_batch_size: int | None = option(
        None, "Records of one micro-batch on one process (8 when tokens_per_step is not given either).", min=1
    )
    gradient_accumulation_steps: int = option(1, "Micro-batches of one optimiser step.", min=1)

    def __post_init__(self) -> None:
        if self.tokens_per_step is None and self.per_device_train_batch_size is None:
            object.__setattr__(self, "per_device_train_batch_size", 8)

    def problems(self) -> list[str]:
        return self._schedule_problems() + self._step_problems()

    def _schedule_problems(self) -> list[str]:
        problems = step_count_problems(self, "warmup_steps")
        kind, given = self.lr_scheduler_type, self.lr_scheduler_kwargs
        unknown = [name for name in given if name not in SCHEDULES[kind]]
        if unknown:
            takes = ", ".join(SCHEDULES[kind]) or "nothing"
            problems.append(f"`lr_scheduler_kwargs` has `{unknown[0]}`; {kind} takes {takes}.")
        if kind == "cosine_with_min_lr" and ("min_lr" in given) == ("min_lr_rate" in given):
            problems.append(
                "`lr_scheduler_type` cosine_with_min_lr needs one of min_lr and min_lr_rate in "
                "`lr_scheduler_kwargs`, for example {min_lr_rate: 0.1}."
            )
        return problems

    def _step_problems(self) -> list[str]:
        if self.tokens_per_step is None:
            return []
        problems = []
        if self.per_device_train_batch_size is not None:
            problems.append(
                "`tokens_per_step` and `per_device_train_batch_size` both set the size of a step. Remove one "
                "(or write null)."
            )
        if self.gradient_accumulation_steps != 1:
            problems.append(
                "`tokens_per_step` is the whole step, so `gradient_accumulation_steps` has nothing to set. Remove one."
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options):
    """The optimiser; the constants are AdamW's (Loshchilov & Hutter 2019)."""

    optim: Literal["adamw", "adamw_8bit", "adafactor", "sgd"] = option(
        "adamw", "The optimiser; adamw_8bit (by bitsandbytes) and adafactor take less memory than adamw."
    )
    weight_decay: float = option(0.0, "Decoupled weight decay on matrices (not on biases and norms).", min=0)
    adam_beta1: float = option(0.9, "Decay of the mean of the gradients.", min=0, below=1)
    adam_beta2: float = option(0.999, "Decay of the mean of their squares.", min=0, below=1)
    adam_epsilon: float = option(1e-8, "Added to the root of the squares' mean.", above=0)
