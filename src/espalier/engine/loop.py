"""The one loop: micro-batches in, optimiser steps out. It knows no algorithm.

The loss of a step is the sum over all its trained units (tokens, or pairs; the objective says which)
divided by their number in the WHOLE step over all ranks. So it depends on the trees of the step alone, not
on how they were cut into micro-batches, accumulated, or spread over processes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from espalier.data.steps.feed import Feed
from espalier.engine.finite import cause
from espalier.engine.hardware import memory_bytes
from espalier.engine.signals import StopSignal
from espalier.engine.strategy import clip_gradients, over_ranks
from espalier.engine.track import Meter, Numbers, Tracker
from espalier.errors import Stopped, UserError
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


@dataclass(frozen=True)
class Schedule:
    """When things are due, in steps.

    Attributes:
        learning_rate: of a step (0 is the first).
        max_grad_norm: gradients are scaled down to it; 0 leaves them alone.
        logging_steps, save_steps, eval_steps: each so many steps; 0 is never.
    """

    learning_rate: Callable[[int], float]
    max_grad_norm: float = 1.0
    logging_steps: int = 10
    save_steps: int = 0
    eval_steps: int = 0


@dataclass(frozen=True)
class Hooks:
    """What the wiring does for the loop, at the steps that are due.

    Attributes:
        save: write a checkpoint of the step.
        validate: numbers of the held-out data at this step.
        after_step: bookkeeping after each optimiser step (a moving average of weights); the gradients are still there.
        learns: whether the loss of a micro-batch depends on the weights at all; a step in which none does is not
            taken, for Adam would make a step of full size out of rounding errors.
    """

    save: Callable[[int], None]
    validate: Callable[[int], dict[str, float]]
    after_step: Callable[[int], None] = lambda step: None
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
    """

    step: int = 0
    tokens: int = 0
    path_tokens: int = 0
    seconds: float = 0.0
    idle: int = 0
    last: dict[str, float] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        return asdict(self)


def run_loop(
    module: nn.Module,
    objective: Objective,
    feed: Feed,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    tracker: Tracker,
    schedule: Schedule,
    hooks: Hooks,
    progress: Progress,
    stop: StopSignal,
) -> Progress:
    """Train until the feed ends.

    Args:
        module: prepared by accelerate; ``module(batch, want)`` gives Outputs.
        progress: where to begin; changed in place and returned.

    Raises:
        Stopped: a signal came; a checkpoint was written first.
        UserError: a loss or gradient that is not a number, a first step that cannot be right, or a step
            without anything to train.
    """
    loop = _Loop(module, objective, optimizer, accelerator, schedule, hooks, progress)
    module.train()
    clock, first, save_due = time.perf_counter(), progress.step == 0, False
    seconds_before, tokens_logged, seconds_logged = progress.seconds, progress.tokens, 0.0
    for batches in _until_stopped(feed, hooks, progress):
        norm, stop_ranks = loop.step(batches, stop.asked)
        progress.seconds = seconds_before + time.perf_counter() - clock
        tracker.step(progress.step)
        if norm is None and progress.idle == 1:
            tracker.say(progress.step, NOTHING_TO_LEARN)
        done = progress.step >= feed.total_steps
        if first or done or _due(progress.step, schedule.logging_steps):
            progress.last = loop.meter.means(lambda sums: over_ranks(accelerator, sums))
            if first:
                _check(objective, progress.last)
                first = False
            spent = progress.seconds - seconds_before - seconds_logged
            tracker.log(
                {
                    "step": progress.step,
                    "epoch": round(feed.epoch, 4),
                    "tokens": progress.tokens,
                    **progress.last,
                    **({"idle_steps": progress.idle} if progress.idle else {}),
                    "learning_rate": schedule.learning_rate(progress.step - 1),
                    "grad_norm": norm or 0.0,
                    "tokens_per_second": round((progress.tokens - tokens_logged) / max(spent, 1e-9), 1),
                    "memory_bytes": memory_bytes(accelerator.device),
                }
            )
            tokens_logged, seconds_logged = progress.tokens, progress.seconds - seconds_before
        if _due(progress.step, schedule.eval_steps) and not done:
            # A stop in the middle of an evaluation is one after this step, and the evaluation is left out.
            with _paused(module), contextlib.suppress(Stopped):
                tracker.log({"step": progress.step, **hooks.validate(progress.step)})
        save_due = save_due or _due(progress.step, schedule.save_steps) or stop_ranks > 0
        if save_due and not done and feed.resumable:
            hooks.save(progress.step)
            save_due = False
            if stop_ranks > 0:
                raise stopped_at(progress.step)
    return progress


NOTHING_TO_LEARN = (
    "nothing in this step says which way to go (no answer of a group is better than another), so its update is "
    "left out; `idle_steps` counts such steps"
)


def stopped_at(step: int) -> Stopped:
    """After the checkpoint of this step."""
    return Stopped(f"stopped at step {step}; run the same command again to continue", step)


def _until_stopped(feed: Feed, hooks: Hooks, progress: Progress) -> Iterator[list[Batch]]:
    """The feed's steps. Where a signal ends the making of one, nothing of it has been learned yet, and the checkpoint
    is that of the step before.

    Raises:
        Stopped: as in `run_loop`.
    """
    steps = feed.steps()
    while True:
        try:
            batches = next(steps)
        except StopIteration:
            return
        except Stopped as stopped:
            if progress.step:
                hooks.save(progress.step)
                raise stopped_at(progress.step) from stopped
            raise Stopped("stopped before the first step; run the same command again", 0) from stopped
        yield batches


@dataclass
class _Loop:
    """What one optimiser step needs."""

    module: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    schedule: Schedule
    hooks: Hooks
    progress: Progress
    meter: Meter = field(default_factory=Meter)

    def step(self, batches: list[Batch], stop: bool) -> tuple[float | None, float]:
        """One optimiser step; returns the gradient's norm (None: nothing to learn, no update) and how many ranks
        were asked to stop."""
        progress, accelerator = self.progress, self.accelerator
        learns = any(self.hooks.learns(batch) for batch in batches if batch.weight)
        totals = _totals(batches, self.objective, stop)
        count, tokens, path_tokens, stop_ranks, learning = over_ranks(accelerator, [*totals, float(learns)])
        if count == 0:
            raise UserError(
                f"step {progress.step + 1}: no token in it is trained. Look at its data with "
                "`espalier inspect`: every record needs an answer, or text, that is to be learned."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(progress.step)
        norm = self._learn(batches, count) if learning else self._look(batches)
        progress.step += 1
        progress.idle += not learning
        progress.tokens += int(tokens)
        progress.path_tokens += int(path_tokens)
        if learning:
            self.hooks.after_step(progress.step)
        self.optimizer.zero_grad()
        return norm, stop_ranks

    def _learn(self, batches: list[Batch], count: float) -> float:
        accelerator, step = self.accelerator, self.progress.step + 1
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            loss = _backward(self.module, self.objective, batch, count, accelerator, last, self.meter)
            if not math.isfinite(loss):
                raise UserError(
                    f"step {step}, rank {accelerator.process_index}: the loss is {loss}. "
                    f"Lower learning_rate, or look at the data of this step; the last checkpoint is kept. "
                    f"{cause(self.module)}"
                )
        norm = clip_gradients(accelerator, self.module, self.schedule.max_grad_norm)
        if not math.isfinite(norm) and accelerator.mixed_precision != "fp16":
            raise UserError(
                f"step {step}, rank {accelerator.process_index}: the gradient norm is {norm}. "
                "Lower learning_rate, or use precision: fp32; the last checkpoint is kept. "
                f"{cause(self.module)}"
            )
        self.optimizer.step()
        return norm

    @torch.no_grad()
    def _look(self, batches: list[Batch]) -> None:
        """The numbers of a step without an update."""
        for batch in batches:
            _, numbers = self.objective.loss(self.module(batch, self.objective.want), batch)
            self.meter.add(numbers, counts=batch.weight > 0)


def _check(objective: Objective, first: dict[str, float]) -> None:
    try:
        objective.check(first)
    except ValueError as broken:
        raise UserError(f"the run was refused after its first step: {broken}") from broken


def _backward(
    module: nn.Module,
    objective: Objective,
    batch: Batch,
    count: float,
    accelerator: Accelerator,
    last: bool,
    meter: Meter,
) -> float:
    """One micro-batch; gradients are exchanged between the ranks at the last one only."""
    sharded = accelerator.distributed_type.value in ("DEEPSPEED", "FSDP")
    accelerator.gradient_state._set_sync_gradients(last)
    alone = (
        nullcontext() if last or sharded or accelerator.num_processes == 1 else accelerator.no_sync(module)
    )
    with alone:
        outputs = module(batch, objective.want)
        loss_sum, numbers = objective.loss(outputs, batch)
        # Gradients are averaged over ranks, so the world's size undoes the average.
        loss = loss_sum * (batch.weight * accelerator.num_processes / count)
        accelerator.backward(loss)
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


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _paused:
    """Evaluation mode inside, training mode after."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __enter__(self) -> None:
        self._module.eval()

    def __exit__(self, *error: object) -> None:
        self._module.train()
