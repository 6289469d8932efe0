"""Several stores as one with records and trees numbered through, choices from them, and their trees made when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from espalier.data.store.columns import CHUNK, Numbers, Store
from espalier.trees.tree import Tree

T = TypeVar("T")
Sizes = npt.NDArray[np.int32]


class Stack:
    """Stores one behind the other.

    Attributes:
        records, trees: of all of them.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        self._first_records = np.cumsum([0, *(store.records for store in stores)])
        self._first_trees = np.cumsum([0, *(store.trees for store in stores)])
        self.records, self.trees = int(self._first_records[-1]), int(self._first_trees[-1])

    def has(self, column: str) -> bool:
        return bool(self.stores) and self.stores[0].has(column)

    def of_records(self, column: str, numbers: Numbers) -> Numbers:
        """A column of the records with these numbers; of names see `names`."""
        offsets = None
        if column in ("file", "role", "causes"):
            offsets = np.cumsum([0, *(len(store.names(column)) for store in self.stores)])
        own = self._gathered(column, numbers, self._first_records)
        if offsets is None:
            return own
        values: Numbers = own.astype(np.int64) + offsets[self._stores_of(numbers, self._first_records)]
        return values

    def of_trees(self, column: str, numbers: Numbers) -> Numbers:
        own = self._gathered(column, numbers, self._first_trees)
        if column != "record":
            return own
        records: Numbers = own + self._first_records[self._stores_of(numbers, self._first_trees)]
        return records

    def names(self, column: str) -> list[Any]:
        """What the numbers that `of_records` gives for a column stand for; a name may stand there twice."""
        return [name for store in self.stores for name in store.names(column)]

    def trees_of(self, records: Numbers) -> Numbers:
        """The numbers of all trees of these records, in their order."""
        at = self._stores_of(records, self._first_records)
        first = np.empty(len(records), np.int64)
        count = np.empty(len(records), np.int64)
        for number, store in enumerate(self.stores):
            mine = at == number
            if mine.any():
                local = records[mine] - self._first_records[number]
                starts = store.column("first_tree").at(local)
                first[mine] = starts + self._first_trees[number]
                count[mine] = store.column("first_tree").at(local + 1) - starts
        if (count == 1).all():
            return first
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        numbers: Numbers = np.repeat(first, count) + within
        return numbers

    def source(self, record: int) -> str:
        number, local = self._local(record, self._first_records)
        return self.stores[number].source(local)

    def source_of_tree(self, number: int) -> str:
        return self.source(int(self.of_trees("record", np.array([number]))[0]))

    def tree(self, number: int) -> Tree:
        at, local = self._local(number, self._first_trees)
        return self.stores[at].tree(local)

    def tokens(self, number: int) -> list[int]:
        at, local = self._local(number, self._first_trees)
        return self.stores[at].tokens(local)

    def note(self, number: int) -> Any:
        at, local = self._local(number, self._first_trees)
        return self.stores[at].note(local)

    def sizes(self, numbers: Numbers) -> Numbers:
        """(n,) int32, tokens of these trees, what they share counted once."""
        at = self._stores_of(numbers, self._first_trees)
        sizes = np.empty(len(numbers), np.int32)
        for number, store in enumerate(self.stores):
            mine = at == number
            if mine.any():
                sizes[mine] = store.sizes(numbers[mine] - self._first_trees[number])
        return sizes

    def _gathered(self, column: str, numbers: Numbers, first: Numbers) -> Numbers:
        at = self._stores_of(numbers, first)
        values: Numbers | None = None
        for number, store in enumerate(self.stores):
            mine = at == number
            if mine.all():
                return store.column(column).at(numbers - first[number])
            if mine.any():
                part = store.column(column).at(numbers[mine] - first[number])
                values = np.empty(len(numbers), part.dtype) if values is None else values
                values[mine] = part
        assert values is not None
        return values

    @staticmethod
    def _stores_of(numbers: Numbers, first: Numbers) -> Numbers:
        stores: Numbers = np.searchsorted(first, numbers, side="right") - 1
        return stores

    @staticmethod
    def _local(number: int, first: Numbers) -> tuple[int, int]:
        at = int(np.searchsorted(first, number, side="right")) - 1
        return at, number - int(first[at])


@dataclass(frozen=True)
class Choice:
    """Records of a stack in an order: all of them, or those with the numbers `picks` (n,)."""

    stack: Stack
    picks: Numbers | None = None

    def __len__(self) -> int:
        return self.stack.records if self.picks is None else len(self.picks)

    def chunks(self) -> Iterator[Numbers]:
        """The numbers of the records, piece by piece."""
        return chunks(self.picks, self.stack.records)

    def trees(self) -> Numbers | None:
        """The numbers of their trees, int32; None: all trees of the stack."""
        if self.picks is None:
            return None
        assert self.stack.trees < 2**31, "more trees than a 32-bit number can tell"
        parts = [self.stack.trees_of(piece).astype(np.int32) for piece in self.chunks()]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)


def chunks(picks: Numbers | None, count: int) -> Iterator[Numbers]:
    """`picks`, or 0 ... count - 1, as int64 piece by piece."""
    count = count if picks is None else len(picks)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        yield np.arange(start, stop) if picks is None else picks[start:stop].astype(np.int64)


class Lazy(Sequence[T]):
    """Things by number, made when they are asked for; what is asked for twice is made twice.

    Args:
        make: the thing of a number from 0 on.
        count: how many there are.
    """

    def __init__(self, make: Callable[[int], T], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self._make(place) for place in range(*at.indices(self._count))]
        if not -self._count <= at < self._count:
            raise IndexError(at)
        return self._make(at % self._count)


class Forest(Lazy[Tree]):
    """Many trees, of which only the number and the sizes are in memory.

    Args:
        make: the tree of a number.
        sizes: their tokens, once with what is shared counted once (False), once every path for itself (True).
        count: how many there are.
    """

    def __init__(self, make: Callable[[int], Tree], sizes: Callable[[bool], Sizes], count: int) -> None:
        super().__init__(make, count)
        self._sizes = sizes

    def sizes(self, *, paths: bool) -> Sizes:
        """(n,) tokens of each tree; `paths`: were each branch a sequence of its own."""
        return self._sizes(paths)

    def mapped(self, change: Callable[[Tree], Tree]) -> Forest:
        """The same trees, each changed when it is made; a change keeps the tokens."""
        return self.numbered(lambda at, tree: change(tree))

    def numbered(self, change: Callable[[int, Tree], Tree]) -> Forest:
        """`mapped` with the number of each tree."""
        return Forest(lambda at: change(at, self._make(at)), self._sizes, self._count)


def stored(choice: Choice) -> Forest:
    """The trees of chosen records."""
    stack, picks = choice.stack, choice.trees()
    count = stack.trees if picks is None else len(picks)

    def sizes(paths: bool) -> Sizes:
        read: Callable[[Any], Any] = stack.sizes
        if paths:
            read = lambda numbers: stack.of_trees("path_tokens", numbers)  # noqa: E731
        counts, at = np.empty(count, np.int32), 0
        for piece in chunks(picks, count):
            counts[at : at + len(piece)] = read(piece)
            at += len(piece)
        return counts

    return Forest(lambda at: stack.tree(at if picks is None else int(picks[at])), sizes, count)


def listed(trees: Sequence[Tree]) -> Forest:
    """Trees that are held already, as a forest."""
    if isinstance(trees, Forest):
        return trees

    def sizes(paths: bool) -> Sizes:
        return np.array([tree.n_path_tokens if paths else tree.n_tokens for tree in trees], np.int32)

    return Forest(lambda at: trees[at], sizes, len(trees))
