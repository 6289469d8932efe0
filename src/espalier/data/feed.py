"""Feeds: where the loop gets its steps from.

A step is a list of micro-batches, the same number on every rank. What is global (which trees, in which
order, in which rows) is decided alike on every rank from the seed; each rank then takes its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from espalier.trees import Batch, Tree, pack
from espalier.trees.layout import Layout, lay_out_tree

Annotate = Callable[[Batch], Batch]
"""Adds what needs no gradient (reference logprobs, …) to a batch before it reaches the loop."""


class Feed(Protocol):
    """A source of steps that knows its place.

    Attributes:
        total_steps: all steps of the run, those before a resume included.
        epoch: how much of the data has been used, 1.0 for all of it once.
        resumable: whether a checkpoint may be written after the step that was given last.
    """

    total_steps: int
    epoch: float
    resumable: bool

    def steps(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step from the present place on."""

    def place(self) -> dict[str, Any]:
        """Where the next step begins, as JSON."""

    def restore(self, place: dict[str, Any]) -> None:
        """Go to a place that was saved."""


@dataclass(frozen=True)
class Rows:
    """How the trees of one step become this rank's micro-batches.

    Attributes:
        lay_out: trees to a Batch.
        row_tokens: the most tokens of one micro-batch; a larger tree goes alone.
        rank, world: this process and how many there are.
        device: where the batches go.
    """

    lay_out: Layout
    row_tokens: int
    rank: int = 0
    world: int = 1
    device: str = "cpu"

    def size(self, tree: Tree) -> int:
        """Tokens that the tree costs in this layout."""
        return tree.n_tokens if self.lay_out is lay_out_tree else tree.n_path_tokens

    def micro_batches(self, trees: Sequence[Tree]) -> list[Batch]:
        """This rank's share, the same number of micro-batches on every rank.

        Where the rows cannot be divided evenly, fillers of no weight keep the ranks in step.
        """
        rows = self._rows([self.size(tree) for tree in trees])
        count = math.ceil(len(rows) / self.world)
        batches = []
        for i in range(count):
            at = i * self.world + self.rank
            row = rows[at] if at < len(rows) else rows[0]
            batch = self.lay_out([trees[j] for j in row]).to(self.device)
            batches.append(batch if at < len(rows) else batch.as_filler())
        return batches

    def _rows(self, sizes: list[int]) -> list[list[int]]:
        rows = pack(sizes, self.row_tokens)
        wanted = math.ceil(len(rows) / self.world) * self.world
        # Smaller rows until every rank has one to do, or every tree is a row of its own.
        limit = self.row_tokens
        while len(rows) < min(wanted, len(sizes)) and limit > 1:
            limit = min(limit - 1, max(max(len_of(sizes, row) for row in rows) - 1, 1))
            rows = pack(sizes, limit)
        return rows if len(rows) <= wanted else pack(sizes, self.row_tokens)


def len_of(sizes: Sequence[int], row: Sequence[int]) -> int:
    return sum(sizes[i] for i in row)


class DatasetFeed:
    """Steps over a fixed set of trees, shuffled anew in every epoch by the seed alone.

    Args:
        trees: the whole set, the same on every rank.
        rows: how a step's trees become micro-batches.
        trees_per_step: trees of a step over all ranks; or None with `tokens_per_step`.
        tokens_per_step: a step ends with the tree that reaches so many tokens.
        epochs: passes over the data.
        max_steps: stop after so many steps (wins over `epochs`), or None.
        seed: of the shuffles.
        annotate: applied to each micro-batch.
    """

    resumable = True

    def __init__(
        self,
        trees: Sequence[Tree],
        rows: Rows,
        *,
        trees_per_step: int | None,
        tokens_per_step: int | None = None,
        epochs: float = 1.0,
        max_steps: int | None = None,
        seed: int = 0,
        annotate: Annotate | None = None,
    ) -> None:
        assert trees, "a feed needs at least one tree"
        assert (trees_per_step is None) != (tokens_per_step is None)
        self._trees, self._rows = trees, rows
        self._trees_per_step, self._tokens_per_step = trees_per_step, tokens_per_step
        self._sizes = [rows.size(tree) for tree in trees]
        self._seed, self._annotate = seed, annotate
        self._epoch, self._index, self._step = 0, 0, 0
        self._max_trees = math.inf if max_steps else math.ceil(epochs * len(trees))
        self.total_steps = max_steps or self._count_steps(int(self._max_trees))
        self.epoch = 0.0

    def steps(self) -> Iterator[list[Batch]]:
        while self._step < self.total_steps:
            order = self._order(self._epoch)
            chosen = self._next(order)
            self._index += len(chosen)
            self._step += 1
            self.epoch = self._epoch + self._index / len(order)
            if self._index >= len(order):
                self._epoch, self._index = self._epoch + 1, 0
            batches = self._rows.micro_batches([self._trees[i] for i in chosen])
            yield [self._annotate(batch) for batch in batches] if self._annotate else batches

    def place(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "index": self._index, "step": self._step, "trees": len(self._trees)}

    def restore(self, place: dict[str, Any]) -> None:
        if place["trees"] != len(self._trees):
            raise ValueError(
                f"the checkpoint was written over {place['trees']} trees and there are {len(self._trees)} now: "
                "the data changed. Start again with resume=false, or restore the data."
            )
        self._epoch, self._index, self._step = place["epoch"], place["index"], place["step"]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._trees))

    def _next(self, order: np.ndarray) -> np.ndarray:
        left = len(order) - self._index
        done = self._epoch * len(order) + self._index
        left = int(min(left, self._max_trees - done)) or left
        if self._trees_per_step is not None:
            return order[self._index : self._index + min(left, self._trees_per_step)]
        assert self._tokens_per_step is not None
        count, tokens = 0, 0
        while count < left and tokens < self._tokens_per_step:
            tokens += self._sizes[order[self._index + count]]
            count += 1
        return order[self._index : self._index + count]

    def _count_steps(self, trees: int) -> int:
        if self._trees_per_step is not None:
            whole, rest = divmod(trees, len(self._trees))
            per_epoch = math.ceil(len(self._trees) / self._trees_per_step)
            return whole * per_epoch + math.ceil(rest / self._trees_per_step)
        steps, done, epoch, index = 0, 0, 0, 0
        while done < trees:
            self._epoch, self._index = epoch, index
            count = len(self._next(self._order(epoch)))
            steps, done, index = steps + 1, done + count, index + count
            if index >= len(self._trees):
                epoch, index = epoch + 1, 0
        self._epoch, self._index = 0, 0
        return steps
