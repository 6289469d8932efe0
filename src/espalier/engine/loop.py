"""The one loop: micro-batches in, optimiser steps out (`step`). It knows no algorithm."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from torch import nn

from espalier.data.steps.feed import Feed
from espalier.engine.group import over_ranks
from espalier.engine.signals import StopSignal
from espalier.engine.step import Hooks, Learner, Objective, Progress, Schedule, Step
from espalier.engine.track import Tracker
from espalier.errors import Stopped, UserError
from espalier.trees import Batch


def run_loop(
    learner: Learner,
    feed: Feed,
    schedule: Schedule,
    hooks: Hooks,
    tracker: Tracker,
    progress: Progress,
    stop: StopSignal,
) -> Progress:
    """Train until the feed ends, or an evaluation was enough.

    Args:
        progress: where to begin; changed in place and returned.

    Raises:
        Stopped: a signal came; a checkpoint was written first.
        UserError: a loss or gradient that is not a number, a first step that cannot be right, or a step
            without anything to train.
    """
    step = Step(learner, schedule, hooks, progress)
    learner.module.train()
    speed = _Speed(progress)
    first, save_due, ended = progress.step == 0, False, False
    for batches in _until_stopped(feed, hooks, progress):
        norm, stop_ranks = step.take(batches, stop.asked)
        speed.measure()
        tracker.step(progress.step)
        if norm is None and progress.idle == 1:
            tracker.say(progress.step, NOTHING_TO_LEARN)
        done = progress.step >= feed.total_steps
        if first or done or _due(progress.step, schedule.logging_steps):
            progress.last = step.meter.means(lambda sums: over_ranks(learner.accelerator, sums))
            if first:
                check_first(learner.objective, progress.last)
                first = False
            tracker.log(step.numbers(feed.epoch, norm, speed.since_logged()))
        if _due(progress.step, schedule.eval_steps) and not done:
            # A stop in the middle of an evaluation is one after this step, and the evaluation is left out.
            with _paused(learner.module), contextlib.suppress(Stopped):
                tracker.log({"step": progress.step, **hooks.validate(progress.step)})
                done = ended = hooks.enough()
        save_due = save_due or _due(progress.step, schedule.save_steps) or stop_ranks > 0
        if save_due and not done and feed.resumable:
            hooks.save(progress.step)
            save_due = False
            if stop_ranks > 0:
                raise stopped_at(progress.step)
        if ended:
            break
    return progress


class _Speed:
    """The seconds of a loop, put into its progress, and its speed since it was last logged."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._clock = progress, time.perf_counter()
        self._before = progress.seconds
        self._tokens, self._seconds = progress.tokens, progress.seconds

    def measure(self) -> None:
        self._progress.seconds = self._before + time.perf_counter() - self._clock

    def since_logged(self) -> float:
        """Tokens a second since the last call."""
        tokens, seconds = self._progress.tokens - self._tokens, self._progress.seconds - self._seconds
        self._tokens, self._seconds = self._progress.tokens, self._progress.seconds
        return round(tokens / max(seconds, 1e-9), 1)


NOTHING_TO_LEARN = (
    "nothing in this step says which way to go (no answer is better than another, all were cut, or stop_kl has ended the rollout), so its update is "
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


def check_first(objective: Objective, first: dict[str, float]) -> None:
    """Refuse a first step that cannot be right.

    Raises:
        UserError: what its numbers say.
    """
    try:
        objective.check(first)
    except ValueError as broken:
        raise UserError(f"the run was refused after its first step: {broken}") from broken


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
