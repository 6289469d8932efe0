"""Columns of numbers on disk: one raw little-endian file each, appended to once and then read by position.

Read with `pread` and not through a memory map: the operating system caches both alike, but pages of a map count as
the process's own memory, and a pass over a map of gigabytes looks (and is limited) like a leak of gigabytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from espalier.disk.checksums import new_sum

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
