"""The feed of reinforcement learning: sample, measure, then go over what was sampled a few times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from espalier.data.steps.feed import Rows
from espalier.trees import Batch, Tree

Roll = Callable[[list[int], int], list[Tree]]
"""(places of prompts, number of the rollout) to trees with their extras, the same on every rank: one a prompt, or fewer
where a prompt has no answer to learn from."""

Mix = Callable[[list[Tree], int], list[Tree]]
"""(the trees of a step, number of the step) to the trees to train on: where a second data set comes in."""


@dataclass(frozen=True)
class RolloutPlan:
    """How prompts become rollouts, and rollouts steps.

    Attributes:
        prompts_per_rollout: sampled together.
        trees_per_step: of one optimiser step.
        passes: over the trees of a rollout (PPO's epochs).
        epochs: over the prompts; or `max_steps`.
        seed: of the order of prompts and of minibatches.
    """

    prompts_per_rollout: int
    trees_per_step: int
    passes: int = 1
    epochs: float = 1.0
    max_steps: int | None = None
    seed: int = 0


class RolloutFeed:
    """Steps over fresh samples of the present policy.

    A checkpoint may be written after the last step of a rollout only: what was sampled is not saved, and the
    next rollout follows from the weights and the seed.

    Args:
        prompts: how many there are.
        roll: makes the experience of one rollout.
        rows: how a step's trees become micro-batches.
        plan: how many of them are a rollout, and how it becomes steps.
        mix: see `Mix`.
    """

    def __init__(
        self, prompts: int, roll: Roll, rows: Rows, plan: RolloutPlan, *, mix: Mix | None = None
    ) -> None:
        self._prompts, self._roll, self._rows, self._plan, self._mix = prompts, roll, rows, plan, mix
        self._per_rollout = min(plan.prompts_per_rollout, prompts)
        self._steps_per_rollout = plan.passes * math.ceil(self._per_rollout / plan.trees_per_step)
        if plan.max_steps:
            self._rollouts = math.ceil(plan.max_steps / self._steps_per_rollout)
        else:
            self._rollouts = math.ceil(plan.epochs * prompts / self._per_rollout)
        self.total_steps = plan.max_steps or self._rollouts * self._steps_per_rollout
        self._rollout = 0
        self.epoch = 0.0
        self.resumable = True

    def steps(self) -> Iterator[list[Batch]]:
        step = self._rollout * self._steps_per_rollout
        while self._rollout < self._rollouts:
            trees = self._roll(self.chosen(self._rollout), self._rollout)
            chunks = self.chunks(trees, self._rollout)
            for i, chunk in enumerate(chunks):
                if step >= self.total_steps:
                    return
                self.resumable = i == len(chunks) - 1
                if self.resumable:
                    self._rollout += 1
                self.epoch = (self._rollout if self.resumable else self._rollout + 1) * self._per_rollout
                self.epoch /= self._prompts
                step += 1
                yield self.micro_batches(chunk, step)

    def place(self) -> dict[str, Any]:
        return {"rollout": self._rollout, "prompts": self._prompts}

    def restore(self, place: dict[str, Any]) -> None:
        if place["prompts"] != self._prompts:
            raise ValueError(
                f"the checkpoint was written over {place['prompts']} prompts and there are {self._prompts} now: "
                "the data changed. Start again with resume=false, or restore the data."
            )
        self._rollout = place["rollout"]

    @property
    def rollouts(self) -> int:
        """How many there are."""
        return self._rollouts

    def micro_batches(self, trees: list[Tree], step: int) -> list[Batch]:
        """The trees of a step (the first is 1) as this rank trains on them, with those of a second data set."""
        return self._rows.micro_batches(self._mix(trees, step) if self._mix else trees)

    def chosen(self, rollout: int) -> list[int]:
        """The prompts of a rollout: an endless sequence of shuffled epochs, cut into pieces."""
        start = rollout * self._per_rollout
        places = [divmod(at, self._prompts) for at in range(start, start + self._per_rollout)]
        orders = {
            epoch: np.random.default_rng([self._plan.seed, epoch]).permutation(self._prompts)
            for epoch in {epoch for epoch, _ in places}
        }
        return [int(orders[epoch][place]) for epoch, place in places]

    def chunks(self, trees: Sequence[Tree], rollout: int) -> list[list[Tree]]:
        """The trees of each step: as many steps as if every prompt had given a tree, for a rollout may have lost some."""
        size, chunks = self._plan.trees_per_step, []
        steps = math.ceil(self._per_rollout / size)
        for i in range(self._plan.passes):
            order = np.random.default_rng([self._plan.seed, rollout, i, 1]).permutation(len(trees))
            if len(trees) == self._per_rollout:
                parts = [order[start : start + size] for start in range(0, len(trees), size)]
            else:  # where there are fewer trees than steps, some come twice
                parts = np.array_split(np.resize(order, max(len(order), steps)), steps)
            chunks += [[trees[j] for j in part] for part in parts]
        return chunks
