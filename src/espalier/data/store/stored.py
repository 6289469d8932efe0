"""A finished store, read by position: its records' facts and its trees."""

from __future__ import annotations

import json
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
        return self.manifest["records"]

    @property
    def trees(self) -> int:
        return self.manifest["trees"]

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
        return self.manifest["names"][column]

    def source(self, record: int) -> str:
        """ "FILE:LINE" of a record."""
        file, line = (int(self._columns[name].read(record, record + 1)[0]) for name in ("file", "line"))
        return f"{self.names('file')[file]}:{line}"

    def sizes(self, places: Numbers | None = None) -> Numbers:
        """(n,) int32, the tokens of the trees at `places` (of all), what they share counted once."""
        starts = self._columns["tokens.start"]
        if places is not None:
            return (starts.at(places + 1) - starts.at(places)).astype(np.int32)
        found = np.empty(self.trees, np.int32)
        for at in range(0, self.trees, CHUNK):
            stretch = starts.read(at, at + CHUNK + 1)
            found[at : at + len(stretch) - 1] = np.diff(stretch)
        return found

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
        return self._part("tokens", place).tolist()

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
