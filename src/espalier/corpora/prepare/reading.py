"""What the corpora read with: rows with their places, or why a row is none; fields as clean text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from espalier.corpora.made import Omission
from espalier.data.read import files
from espalier.data.read.columns import columns_of
from espalier.data.read.messages import Bad
from espalier.data.read.rows import renamed
from espalier.data.records import BadRecord
from espalier.errors import UserError

Row = dict[str, Any]


def rows(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[tuple[str, Row] | Omission]:
    """The rows of a data file of any kind; what cannot be read or written again is an `Omission`.

    `columns`: a column's name here -> its name in the file.
    Raises `UserError` where a broken place hides what stands behind it: nobody knows what would be missing.
    """
    for place, row, raw in files.read_rows(path):
        if isinstance(row, BadRecord):
            if row.hides:
                raise UserError(str(row))
            yield Omission(place, row.cause, raw, row.reason)
        elif not _is_whole(row):
            yield Omission(place, "half a character (a lone surrogate)", reason="repair the text")
        else:
            try:
                yield place, dict(renamed(row, columns or {}))
            except Bad as bad:
                yield Omission(place, bad.cause, as_line(row), bad.reason)


def as_line(row: Row) -> str:
    """A row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False, default=str)


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
            return Omission(
                place, f"no column {name!r}", as_line(dict(row)), f"found the columns {columns_of(row)}"
            )
    return None


def _is_whole(row: Row) -> bool:
    try:
        as_line(row).encode()
    except UnicodeEncodeError:
        return False
    return True
