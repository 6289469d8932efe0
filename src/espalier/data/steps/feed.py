"""Feeds: where the loop gets its steps from.

A step is a list of micro-batches, the same number on every rank. What is global (which trees, in which
order, in which rows) is decided alike on every rank from the seed; each rank then takes its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from espalier.data.store.stack import Lazy, Sizes, listed
from espalier.trees import Batch, Tree, pack
from espalier.trees.batch import Layout, lay_out_tree
from espalier.trees.packing import spread

Batches = Lazy[Batch]
"""Micro-batches that are laid out when they are asked for."""
Annotate = Callable[[list[Batch]], list[Batch]]
"""Adds what needs no gradient (reference logprobs, …) to the micro-batches of a step before they reach the loop."""


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
        unshared: count what branches share once for each of them: a model of this step unrolls the rows.
        rank, world: this process and how many there are.
        device: where the batches go.
    """

    lay_out: Layout
    row_tokens: int
    rank: int = 0
    world: int = 1
    device: str = "cpu"
    unshared: bool = False

    @property
    def shares_prompts(self) -> bool:
        """Whether what branches share is laid out once."""
        return self.lay_out is lay_out_tree

    def sizes(self, trees: Sequence[Tree]) -> Sizes:
        """(n,) tokens that each tree costs in this layout."""
        return listed(trees).sizes(paths=self.unshared or not self.shares_prompts)

    def micro_batches(self, trees: Sequence[Tree]) -> list[Batch]:
        """This rank's share, the same number of micro-batches on every rank.

        Where the rows cannot be divided evenly, fillers of no weight keep the ranks in step.
        """
        return list(self.lazily(trees))

    def lazily(self, trees: Sequence[Tree]) -> Batches:
        """The same, each batch laid out when it is asked for, and again when it is asked for again."""
        return self.dealt(trees, self.rows_of(self.sizes(trees)))

    def dealt(self, trees: Sequence[Tree], rows: Sequence[Sequence[int]]) -> Batches:
        """This rank's part of `rows`, which are places in `trees`; no other tree is touched."""
        own = [i * self.world + self.rank for i in range(math.ceil(len(rows) / self.world))]

        def make(number: int) -> Batch:
            at = own[number]
            row = rows[at] if at < len(rows) else rows[0]
            batch = self.lay_out([trees[j] for j in row]).to(self.device)
            return batch if at < len(rows) else batch.as_filler()

        return Batches(make, len(own))

    def rows_of(self, sizes: Sizes) -> list[list[int]]:
        """Places of the trees of each row; so many rows, if possible, that no rank goes without one, and then of like
        length."""
        each = sizes.tolist()
        rows = pack(each, self.row_tokens)
        wanted = min(math.ceil(len(rows) / self.world) * self.world, len(each))
        if len(rows) == wanted:
            return rows
        even = spread(each, wanted)
        fits = all(len(row) == 1 or sum(each[i] for i in row) <= self.row_tokens for row in even)
        return even if fits else rows


LOOKAHEAD = 8192
"""From how many trees, next to each other in the shuffled order, the rows of one stretch are filled."""


@dataclass(frozen=True)
class Packed:
    """All trees of a set in rows: row i holds the trees `members[starts[i]:starts[i + 1]]`."""

    members: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, at: int) -> npt.NDArray[np.int32]:
        return self.members[self.starts[at] : self.starts[at + 1]]


def packed(sizes: Sizes, limit: int, seed: int, lookahead: int = LOOKAHEAD) -> Packed:
    """A seeded shuffle of all trees, stretch by stretch put into rows of at most `limit` tokens.

    Best fit within a stretch, so a row holds trees from anywhere in the set. Over 97 % of the rows' room is used
    where trees are much shorter than rows; a larger tree is a row of its own.
    """
    members = shuffled(len(sizes), [seed])
    starts: list[npt.NDArray[np.int64]] = [np.zeros(1, np.int64)]
    for begin in range(0, len(sizes), lookahead):
        stretch = members[begin : begin + lookahead].copy()
        rows = pack(sizes[stretch].tolist(), limit)
        members[begin : begin + lookahead] = stretch[np.fromiter(chain.from_iterable(rows), np.int64)]
        starts.append(np.cumsum([len(row) for row in rows]) + begin)
    return Packed(members, np.concatenate(starts))


def shuffled(count: int, seed: Sequence[int]) -> npt.NDArray[np.int32]:
    """0 ... count - 1 in the order of `numpy.random.default_rng(seed).permutation(count)`, in half of its memory."""
    order = np.arange(count, dtype=np.int32)
    np.random.default_rng(seed).shuffle(order)
    return order


class DatasetFeed:
    """Steps over a fixed set of trees, shuffled anew in every epoch by the seed alone.

    With `trees_per_step` the trees of an epoch are shuffled, and those of a step share rows. With `tokens_per_step`
    all trees are put into full rows once (see `packed`), and an epoch shuffles the rows. Either way a step's trees do not
    depend on the number of ranks, so a place is the same place under any; and memory holds 4 to 12 bytes a tree and the
    trees of one step of this rank.

    Args:
        trees: the whole set, the same on every rank.
        rows: how a step's trees become micro-batches.
        trees_per_step: trees of a step over all ranks; or None with `tokens_per_step`.
        tokens_per_step: the most tokens of a step over all ranks (a single larger tree is a row of its own).
        epochs: passes over the data.
        max_steps: stop after so many steps (wins over `epochs`), or None.
        seed: of the shuffles.
        annotate: applied to the micro-batches of each step.
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
        self._sizes = rows.sizes(trees)
        self._seed, self._annotate = seed, annotate
        self._epoch, self._index, self._step = 0, 0, 0
        self._packed: Packed | None = None
        if tokens_per_step is None:
            assert trees_per_step is not None
            self._per_step, self._units = trees_per_step, len(trees)
        else:
            # Rows that together are a step, whatever the number of ranks: so a step has the same trees on any of them.
            self._per_step = (
                max(math.ceil(tokens_per_step / rows.row_tokens), 1) if rows.row_tokens > 1 else 1
            )
            self._packed = packed(self._sizes, max(tokens_per_step // self._per_step, 1), seed)
            self._units = len(self._packed)
        self._order_of: tuple[int, npt.NDArray[np.int32]] = (-1, np.empty(0, np.int32))
        self._last = math.inf if max_steps else math.ceil(epochs * self._units)
        self.total_steps = max_steps or self._count_steps(int(self._last))
        self.epoch = 0.0

    def steps(self) -> Iterator[list[Batch]]:
        while self._step < self.total_steps:
            done = self._epoch * self._units + self._index
            count = min(self._per_step, self._units - self._index)
            count = int(min(count, self._last - done)) or count
            chosen = self._order(self._epoch)[self._index : self._index + count]
            self._index += count
            self._step += 1
            self.epoch = self._epoch + self._index / self._units
            if self._index >= self._units:
                self._epoch, self._index = self._epoch + 1, 0
            batches = list(self._batches(chosen))
            yield self._annotate(batches) if self._annotate else batches

    def _batches(self, chosen: npt.NDArray[np.int32]) -> Batches:
        rows = self._rows
        if self._packed is not None:
            full = [self._packed.row(int(at)) for at in chosen]
            if rows.row_tokens > 1 and len(full) % rows.world == 0:
                return rows.dealt(self._trees, [row.tolist() for row in full])
            chosen = np.concatenate(full)
        return rows.dealt(self._trees, [chosen[row].tolist() for row in rows.rows_of(self._sizes[chosen])])

    def place(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "index": self._index,
            "step": self._step,
            "trees": len(self._trees),
            "division": self._division,
        }

    @property
    def _division(self) -> list[int]:
        """Units (trees, or full rows) of an epoch and of a step, which an index counts in."""
        return [self._units, self._per_step]

    def restore(self, place: dict[str, Any]) -> None:
        if place["trees"] != len(self._trees):
            raise ValueError(
                f"the checkpoint was written over {place['trees']} trees and there are {len(self._trees)} now: "
                "the data changed. Start again with resume=false, or restore the data."
            )
        division = place.get("division", self._division)  # an earlier version did not note it
        if division != self._division:
            rows, ours = ("{1:,} of {0:,}".format(*counts) for counts in (division, self._division))
            raise ValueError(
                f"the checkpoint counts in steps of {rows} trees or rows, and there are {ours} here, so that some would "
                "be seen twice and others never: another layout fills other rows, or an earlier version of Espalier wrote "
                "it with another number of processes. Go on as it began, or start again with resume=false."
            )
        self._epoch, self._index, self._step = place["epoch"], place["index"], place["step"]

    def _order(self, epoch: int) -> npt.NDArray[np.int32]:
        if self._order_of[0] != epoch:
            self._order_of = (epoch, shuffled(self._units, [self._seed, epoch]))
        return self._order_of[1]

    def _count_steps(self, units: int) -> int:
        whole, rest = divmod(units, self._units)
        return whole * math.ceil(self._units / self._per_step) + math.ceil(rest / self._per_step)
