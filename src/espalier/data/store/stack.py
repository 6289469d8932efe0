"""Finished stores, read by position: one, several as one with records and trees numbered through, and choices from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espalier.data.read.account import Account
from espalier.data.store.build import REJECTED, from_json
from espalier.data.store.columns import CHUNK, Column, Numbers
from espalier.trees.tree import Tree


class Store:
    """The records of one source and their trees.

    Args:
        folder: with the columns that `build` has written.
        manifest: what `build` has said of them.

    Raises:
        OSError, KeyError: it is no whole store.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        lengths = self.manifest["lengths"]
        self._columns = {
            name: Column(folder, name, dtype, lengths[name]) for name, dtype in self.manifest["types"].items()
        }

    @property
    def records(self) -> int:
        return int(self.manifest["records"])

    @property
    def trees(self) -> int:
        return int(self.manifest["trees"])

    @property
    def rejected(self) -> Path:
        """Its bad records as JSON lines."""
        return self.folder / REJECTED

    @cached_property
    def left_out(self) -> Account:
        """How many rows did not become records, by cause."""
        return from_json(self.manifest["left_out"])

    def has(self, column: str) -> bool:
        return column in self._columns

    def column(self, name: str) -> Column:
        return self._columns[name]

    def names(self, column: str) -> list[Any]:
        """What the numbers in a column stand for."""
        return list(self.manifest["names"][column])

    def source(self, record: int) -> str:
        """ "FILE:LINE" of a record."""
        file, line = (int(self._columns[name].read(record, record + 1)[0]) for name in ("file", "line"))
        return f"{self.names('file')[file]}:{line}"

    def sizes(self, places: Numbers | None = None) -> Numbers:
        """(n,) int32, the tokens of the trees at `places` (of all), what they share counted once."""
        starts = self._columns["tokens.start"]
        if places is not None:
            return (starts.at(places + 1) - starts.at(places)).astype(np.int32)
        sizes = np.empty(self.trees, np.int32)
        for at in range(0, self.trees, CHUNK):
            stretch = starts.read(at, at + CHUNK + 1)
            sizes[at : at + len(stretch) - 1] = np.diff(stretch)
        return sizes

    def tree(self, place: int) -> Tree:
        """The tree as it was made, token for token."""
        raw = self._part("tokens", place)
        trained = raw < 0
        ids = np.where(trained, -1 - raw, raw).astype(np.int64)
        source = self.source(int(self._columns["record"].read(place, place + 1)[0]))
        extras = {}
        if "extras" in self._columns and len(values := self._part("extras", place)):
            extras = {self.manifest["extras"]: torch.from_numpy(values.astype(np.float32))}
        shape = self._part("shape", place) if "shape" in self._columns else ()
        if not len(shape):
            return Tree(ids, trained, (), (0,), source, extras)
        root = _grown(ids, trained, iter(shape.tolist()), [0])  # type: ignore[union-attr]
        return Tree(root.tokens, root.trained, root.children, root.ends, source, extras)

    def tokens(self, place: int) -> list[int]:
        """The tokens of a prompt."""
        ids: list[int] = self._part("tokens", place).tolist()
        return ids

    def note(self, place: int) -> Any:
        """What a prompt's rewards want to know: [its last turn, the reference]."""
        return json.loads(self._part("note", place).tobytes())

    def _part(self, name: str, place: int) -> Numbers:
        start, stop = self._columns[f"{name}.start"].read(place, place + 2).tolist()
        return self._columns[name].read(start, stop)


def _grown(ids: Numbers, trained: Numbers, shape: Any, at: list[int]) -> Tree:
    """The node that begins at token `at[0]`, which is moved behind all below it."""
    size, children, ends = next(shape), next(shape), next(shape)
    branches = tuple(next(shape) for _ in range(ends))
    start = at[0]
    at[0] = start + size
    below = tuple(_grown(ids, trained, shape, at) for _ in range(children))
    return Tree(ids[start : start + size], trained[start : start + size], below, branches)


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
