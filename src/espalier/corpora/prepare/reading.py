"""What the corpora read with: rows with their places, or why a row is none; fields as clean text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from espalier.corpora.made import Omission
from espalier.data.read import files
from espalier.data.records import BadRecord

Row = dict[str, Any]


def rows(path: Path) -> Iterator[tuple[str, Row] | Omission]:
    """The rows of a JSON, JSON lines, CSV or Parquet file; what cannot be read or written again is an `Omission`."""
    for place, row, raw in files.read_rows(path):
        if isinstance(row, BadRecord):
            yield Omission(place, row.cause, raw)
        elif _is_whole(row):
            yield place, row
        else:
            yield Omission(place, "half a character (a lone surrogate)")


def data_files(where: Path) -> list[Path]:
    """`where` itself, or the data files below it in the order of their names.

    Raises `UserError` where there is none.
    """
    return [where] if where.is_file() else files.data_files(where)


def rows_of(where: Path) -> Iterator[tuple[str, Row] | Omission]:
    """The rows of one file, or of all data files below a folder; raises `UserError` where there is none."""
    for path in data_files(where):
        yield from rows(path)


def text_of(row: Mapping[str, Any], name: str) -> str:
    """The field as text; missing, null and anything but text are the empty text."""
    value = row.get(name)
    return value if isinstance(value, str) else ""


def lacking(place: str, row: Mapping[str, Any], *names: str) -> Omission | None:
    """Why the row is none: a column that it must have is not there at all."""
    for name in names:
        if name not in row:
            return Omission(place, f"no column {name!r}", json.dumps(row, ensure_ascii=False, default=str))
    return None


def _is_whole(row: Row) -> bool:
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True
