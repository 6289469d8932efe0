"""The rows of a source in blocks: lines of JSON as they are, to be parsed by who gets them, other files row by row."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from espalier.data.read.files import is_lines
from espalier.data.read.lines import CHARACTERS, RECORDS, Block, Placed, json_lines, line_blocks, lines_of
from espalier.data.read.sources import hub_rows, part_rows, parts_of
from espalier.data.read.specs import DatasetSpec
from espalier.data.records import BadRecord


def blocks_of(spec: DatasetSpec) -> Iterator[Block]:
    """All rows behind a spec in order.

    Raises:
        UserError: a file cannot be read.
    """
    parts = parts_of(spec)
    if parts is None:
        return _of_rows(hub_rows(spec))
    return chain.from_iterable(_of_part(path, spec) for path in parts)


def _of_part(path: Path, spec: DatasetSpec) -> Iterator[Block]:
    return line_blocks(path) if _as_lines(path, spec) else _of_rows(part_rows(spec, path))


def _as_lines(path: Path, spec: DatasetSpec) -> bool:
    return spec.reader is None and is_lines(path)


def rows_at(spec: DatasetSpec, path: str, lines: Container[int], last: int) -> Iterator[Placed]:
    """The rows of one part (or hub data set) of a spec at these lines, the last of which is `last`."""
    parts = parts_of(spec)
    if parts is not None and _as_lines(Path(path), spec):
        for number, line in enumerate(islice(lines_of(Path(path)), last), start=1):
            if number in lines:
                yield from json_lines(Path(path), [line], number)
        return
    for placed in hub_rows(spec) if parts is None else part_rows(spec, Path(path)):
        number = int(placed[0].rpartition(":")[2])
        if number > last:
            return
        if number in lines:
            yield placed


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
