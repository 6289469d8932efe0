"""One optimiser step over micro-batches, and what it needs: the objective, the learner, when what is due.

The loss of a step is the sum over all its trained units (tokens, or pairs; the objective says which)
divided by their number in the WHOLE step over all ranks. So it depends on the trees of the step alone, not
on how they were cut into micro-batches, accumulated, or spread over processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from espalier.engine import strategy
from espalier.engine.finite import cause
from espalier.engine.group import over_ranks
from espalier.engine.hardware import memory_bytes
from espalier.engine.track import Meter, Numbers
from espalier.errors import UserError
from espalier.models.forward import Outputs, Want
from espalier.trees import Batch


class Objective(Protocol):
    """What a stage learns: what it wants of the forward, its loss, and what it counts.

    `loss` returns the SUM over the units of the micro-batch, with numbers to log as (sum, weight).
    `check` looks at the numbers of the very first step and raises ValueError if they cannot be right.
    """

    want: Want

    def count(self, batch: Batch) -> float: ...

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]: ...

    def check(self, first: dict[str, float]) -> None: ...


Rate = Callable[[int], float]
"""The learning rate of a step (0 is the first)."""


@dataclass(frozen=True)
class Schedule:
    """When things are due, in steps.

    Attributes:
        learning_rate: of all that has no part of its own.
        max_grad_norm: gradients are scaled down to it; 0 leaves them alone.
        parts: the rate and the norm of the optimiser's groups with this ``part``.
        logging_steps, save_steps, eval_steps: each so many steps; 0 is never.
    """

    learning_rate: Rate
    max_grad_norm: float = 1.0
    parts: Mapping[str, tuple[Rate, float]] = field(default_factory=dict)
    logging_steps: int = 10
    save_steps: int = 0
    eval_steps: int = 0


@dataclass(frozen=True)
class Hooks:
    """What the wiring does for the loop, at the steps that are due.

    Attributes:
        save: write a checkpoint of the step.
        validate: numbers of the held-out data at this step.
        after_backward: a look at the gradients of a step, before they are clipped.
        after_step: bookkeeping after each optimiser step (a moving average of weights); the gradients are still there.
        enough: asked after an evaluation, whether training ends here.
        learns: whether the loss of a micro-batch depends on the weights at all; a step in which none does is not
            taken, for Adam would make a step of full size out of rounding errors.
    """

    save: Callable[[int], None]
    validate: Callable[[int], dict[str, float]]
    after_backward: Callable[[int], None] = lambda step: None
    after_step: Callable[[int], None] = lambda step: None
    enough: Callable[[], bool] = lambda: False
    learns: Callable[[Batch], bool] = lambda batch: True


@dataclass
class Progress:
    """Where the loop is; its sums go into the checkpoint.

    Attributes:
        step: optimiser steps done.
        tokens: tokens computed in rows, over all ranks.
        path_tokens: the same with nothing shared.
        seconds: in the loop, those before a resume included.
        idle: steps that were not taken, for nothing in them said which way.
        last: the numbers that were logged last.
        evaluated: the step of the last evaluation; -1: there was none.
        best: step, value, stderr and n of the evaluation after step 0 with the best held-out number; where another number
            decides, its name as metric, and the stage's own estimate as held_out.
        worse: evaluations since then.
    """

    step: int = 0
    tokens: int = 0
    path_tokens: int = 0
    seconds: float = 0.0
    idle: int = 0
    last: dict[str, float] = field(default_factory=dict)
    evaluated: int = -1
    best: dict[str, Any] = field(default_factory=dict)
    worse: int = 0

    def state(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Learner:
    """What is trained, and how.

    Attributes:
        module: prepared by accelerate; ``module(batch, want)`` gives Outputs.
        objective: what it learns.
        optimizer, accelerator: of the module.
    """

    module: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator


@dataclass
class Step:
    """Makes the optimiser steps of a run, one for each list of micro-batches."""

    learner: Learner
    schedule: Schedule
    hooks: Hooks
    progress: Progress
    meter: Meter = field(default_factory=Meter)

    def take(self, batches: list[Batch], stop: bool) -> tuple[float | None, float]:
        """One optimiser step; returns the gradient's norm (None: nothing to learn, no update) and how many ranks
        were asked to stop."""
        progress, learner = self.progress, self.learner
        learns = any(self.hooks.learns(batch) for batch in batches if batch.weight)
        totals = _totals(batches, learner.objective, stop)
        count, tokens, path_tokens, stop_ranks, learning = over_ranks(
            learner.accelerator, [*totals, float(learns)]
        )
        if count == 0 and learning:
            raise UserError(
                f"step {progress.step + 1}: no token in it is trained. Look at its data with "
                "`espalier inspect`: every record needs an answer, or text, that is to be learned."
            )
        for group in learner.optimizer.param_groups:
            rate, _ = self._pace(group)
            group["lr"] = rate(progress.step) * group.get("lr_scale", 1.0)
        norm = self._learn(batches, count) if learning else self._look(batches)
        progress.step += 1
        progress.idle += not learning
        progress.tokens += int(tokens)
        progress.path_tokens += int(path_tokens)
        if learning:
            self.hooks.after_step(progress.step)
        learner.optimizer.zero_grad()
        return norm, stop_ranks

    def _learn(self, batches: list[Batch], count: float) -> float:
        module, accelerator, step = self.learner.module, self.learner.accelerator, self.progress.step + 1
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            loss = _backward(self.learner, batch, count, self.meter, last=last)
            if not math.isfinite(loss):
                raise UserError(
                    f"step {step}, rank {accelerator.process_index}: the loss is {loss}. "
                    f"Lower learning_rate, or look at the data of this step; the last checkpoint is kept. "
                    f"{cause(module)}"
                )
        self.hooks.after_backward(step)
        norm = strategy.clip_gradients(accelerator, module, self.schedule.max_grad_norm, self._apart())
        if not math.isfinite(norm) and accelerator.mixed_precision != "fp16":
            raise UserError(
                f"step {step}, rank {accelerator.process_index}: the gradient norm is {norm}. "
                "Lower learning_rate, or use precision: fp32; the last checkpoint is kept. "
                f"{cause(module)}"
            )
        strategy.update(module, self.learner.optimizer)
        return norm

    def _pace(self, group: dict[str, Any]) -> tuple[Rate, float]:
        """The rate and the largest norm of a group of the optimiser."""
        whole = self.schedule.learning_rate, self.schedule.max_grad_norm
        return self.schedule.parts.get(group.get("part", ""), whole)

    def _apart(self) -> strategy.Parts:
        """The parameters of each part with the largest norm of its gradient; none where there are no parts."""
        if not self.schedule.parts:
            return []
        apart: dict[str, tuple[list[nn.Parameter], list[int], float]] = {}
        for number, group in enumerate(self.learner.optimizer.param_groups):
            part = apart.setdefault(group.get("part", ""), ([], [], self._pace(group)[1]))
            part[0].extend(group["params"])
            part[1].append(number)
        return list(apart.values())

    def numbers(self, epoch: float, norm: float | None, speed: float) -> dict[str, float]:
        """What is logged of the present step."""
        progress, rate = self.progress, self.schedule.learning_rate(self.progress.step - 1)
        of_parts = {
            f"{name}_learning_rate": of(progress.step - 1) for name, (of, _) in self.schedule.parts.items()
        }
        return {
            "step": progress.step,
            "epoch": round(epoch, 4),
            "tokens": progress.tokens,
            **progress.last,
            **({"idle_steps": progress.idle} if progress.idle else {}),
            "learning_rate": rate,
            **{name: own for name, own in of_parts.items() if own != rate},
            "grad_norm": norm or 0.0,
            "tokens_per_second": speed,
            "memory_bytes": memory_bytes(self.learner.accelerator.device),
        }

    @torch.no_grad()
    def _look(self, batches: list[Batch]) -> None:
        """The numbers of a step without an update."""
        module, objective = self.learner.module, self.learner.objective
        for batch in batches:
            _, numbers = objective.loss(module(batch, objective.want), batch)
            self.meter.add(numbers, counts=batch.weight > 0)


def _backward(learner: Learner, batch: Batch, count: float, meter: Meter, *, last: bool) -> float:
    """One micro-batch; gradients are exchanged between the ranks at the last one only."""
    module, objective, accelerator = learner.module, learner.objective, learner.accelerator
    with strategy.apart(accelerator, module, last=last):
        outputs = module(batch, objective.want)
        loss_sum, numbers = objective.loss(outputs, batch)
        # Gradients are averaged over ranks, so the world's size undoes the average.
        loss = loss_sum * (batch.weight * accelerator.num_processes / count)
        strategy.backward(accelerator, module, loss, last=last)
    meter.add(numbers, counts=batch.weight > 0)
    return float(loss.detach())


def _totals(batches: list[Batch], objective: Objective, stop: bool) -> list[float]:
    counted = [batch for batch in batches if batch.weight]
    return [
        sum(objective.count(batch) for batch in counted),
        sum(batch.tokens_in_rows for batch in counted),
        sum(batch.tokens_in_paths for batch in counted),
        float(stop),
    ]
