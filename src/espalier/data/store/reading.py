"""The rows of a source in blocks: lines of JSON as they are, to be parsed by who gets them, other files row by row."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from espalier.data.read.files import lines_of, read_rows
from espalier.data.read.json_files import Placed, json_lines
from espalier.data.read.sources import files_of, hub_rows
from espalier.data.read.specs import DatasetSpec
from espalier.data.records import BadRecord
from espalier.data.store.blocks import Block

RECORDS, CHARACTERS = 512, 1 << 20
"""A block ends with whichever is reached first."""


def blocks_of(spec: DatasetSpec) -> Iterator[Block]:
    """All rows behind a spec in order.

    Raises:
        UserError: a file cannot be read.
    """
    files = files_of(spec)
    if files is None:
        yield from _of_rows(hub_rows(spec))
        return
    for path in files:
        if _is_lines(path):
            yield from _of_lines(path)
        else:
            yield from _of_rows(read_rows(path, lines=spec.format == "lines"))


def rows_at(spec: DatasetSpec, path: str, lines: Container[int], last: int) -> Iterator[Placed]:
    """The rows of one file (or hub data set) of a spec at these lines, the last of which is `last`."""
    if files_of(spec) is not None and _is_lines(Path(path)):
        for number, line in enumerate(islice(lines_of(Path(path)), last), start=1):
            if number in lines:
                yield from json_lines(Path(path), [line], number)
        return
    rows = hub_rows(spec) if files_of(spec) is None else read_rows(Path(path), lines=spec.format == "lines")
    for placed in rows:
        number = int(placed[0].rpartition(":")[2])
        if number > last:
            return
        if number in lines:
            yield placed


def _is_lines(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".jsonl")


def _of_lines(path: Path) -> Iterator[Block]:
    lines: list[str] = []
    first, size = 1, 0
    for number, line in enumerate(lines_of(path), start=1):
        lines.append(line)
        size += len(line)
        if len(lines) >= RECORDS or size >= CHARACTERS:
            yield Block(str(path), first, lines)
            lines, first, size = [], number + 1, 0
    if lines:
        yield Block(str(path), first, lines)


def _of_rows(rows: Iterator[Placed]) -> Iterator[Block]:
    block, size = Block(), 0
    for placed in rows:
        block.rows.append(placed)
        size += _characters(placed[1])
        if len(block.rows) >= RECORDS or size >= CHARACTERS:
            yield block
            block, size = Block(), 0
    if block.rows:
        yield block


def _characters(value: Any) -> int:
    """About how long the texts in a row are."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    if isinstance(value, list):
        return sum(map(_characters, value))
    return len(value.reason) if isinstance(value, BadRecord) else 8
