"""A store: columns of numbers on disk, one raw little-endian file each, appended to once and then read by position.

Read with `pread` and not through a memory map: the operating system caches both alike, but pages of a map count as
the process's own memory, and a pass over a map of gigabytes looks (and is limited) like a leak of gigabytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from espalier.data.read.account import Account
from espalier.disk.checksums import new_sum
from espalier.trees.tree import BLANK, Tree

MANIFEST, REJECTED = "manifest.json", "rejected.jsonl"

Numbers = npt.NDArray[Any]

CHUNK = 1 << 16
"""How many numbers a pass over a column holds at once."""


class ColumnWriter:
    """Appends arrays to named columns of a folder. Use it in a `with`; on a clean end everything is on the disk."""

    def __init__(self, folder: Path, types: Mapping[str, str]) -> None:
        self._types = dict(types)
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in types}
        self.lengths = dict.fromkeys(types, 0)
        self._sums = {name: new_sum() for name in types}

    @property
    def sums(self) -> dict[str, str]:
        """The checksum of each column's file as it has been written so far."""
        return {name: total.hexdigest() for name, total in self._sums.items()}

    def add(self, name: str, values: Numbers) -> None:
        """`values` (n,) of any type that the column's own can hold."""
        written = np.ascontiguousarray(values, self._types[name]).tobytes()
        self._files[name].write(written)
        self._sums[name].update(written)
        self.lengths[name] += len(values)

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            for file in self._files.values():
                if kind is None:
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            for file in self._files.values():
                file.close()


class Column:
    """A column of a finished store.

    Raises:
        OSError: the file is missing or not as long as it should be.
    """

    def __init__(self, folder: Path, name: str, dtype: str, length: int) -> None:
        self._dtype, self._length = np.dtype(dtype), length
        path = folder / f"{name}.bin"
        self._file = path.open("rb", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        if size != length * self._dtype.itemsize:
            raise OSError(f"{path} has {size} bytes, wanted {length * self._dtype.itemsize}")

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> Numbers:
        """The numbers from `start` up to but not including `stop`; a copy that may be written to."""
        wanted = np.empty(max(min(stop, self._length) - start, 0), self._dtype)
        view, at = memoryview(wanted.view(np.uint8).data), 0
        while at < len(view):
            got = os.preadv(self._file.fileno(), [view[at:]], start * self._dtype.itemsize + at)
            if not got:
                raise OSError(f"{self._file.name} ended early")
            at += got
        return wanted

    def at(self, places: Numbers) -> Numbers:
        """The numbers at `places` (n,), in their order."""
        if not len(places):
            return np.empty(0, self._dtype)
        low, high = int(places.min()), int(places.max()) + 1
        if high - low <= max(8 * len(places), 4096):
            values: Numbers = self.read(low, high)[places - low]
            return values
        return np.concatenate([self.read(int(place), int(place) + 1) for place in places])

    def chunks(self) -> Iterator[tuple[int, Numbers]]:
        """(first place, numbers) of the whole column, piece by piece."""
        for start in range(0, self._length, CHUNK):
            yield start, self.read(start, start + CHUNK)


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
            numbers = torch.from_numpy(values.astype(np.float32))
            name = self.manifest["extras"]
            extras = {name: numbers[None] if name == BLANK else numbers}
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
        """What a prompt's rewards want to know: [its last turn, the reference, its turns, further columns as JSON text, how an
        answer must begin]."""
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


def from_json(counts: dict[str, Any]) -> Account:
    """An account as a manifest holds it."""
    account = Account(counts["counts"])
    account.first = {cause: (place, reason) for cause, (place, reason) in counts["first"].items()}
    return account
