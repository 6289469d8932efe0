"""Files -> rows with their places: JSON lines, JSON, CSV, TSV, Parquet and plain text, packed or not.

A row's place is "FILE:LINE" (for Parquet the row's number). What cannot be read as a row comes out as a
`BadRecord` in its place, so that one broken line does not hide the others. Packings are known to `packed`, encodings
to `lines`, meaning is given by `formats`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

from espalier.data.read.json_files import json_file
from espalier.data.read.lines import (
    LONGEST,
    TOO_LONG,
    Placed,
    TooLongLine,
    check_not_empty,
    json_lines,
    lines_in,
    open_text,
    readable,
)
from espalier.data.read.packed import PACKINGS, inner_name, packing_of
from espalier.data.records import BadRecord
from espalier.errors import UserError

LINES = (".jsonl", ".ndjson", ".jsonlines")
"""Suffixes of JSON lines."""
_TEXTS = (*LINES, ".json", ".csv", ".tsv", ".txt")
SUFFIXES = (*_TEXTS, *(f"{kind}{packing}" for kind in _TEXTS for packing in PACKINGS), ".zip", ".parquet")
WANTED = ".jsonl, .json, .csv, .tsv, .txt (packed as .gz, .bz2, .xz, .zst or .zip too) or .parquet"
"""`SUFFIXES`, for messages."""

_ABOUT_DATA = ("dataset_info.json", "dataset_infos.json")
"""Files of LLaMA-Factory and of the hub that describe data and are none."""

_UNPACK = "unpack it into this folder, and move the archive out of it"
_AS_LINES = "write its records as JSON lines (.jsonl)"
_CURES = {
    **{f".parquet{packing}": "unpack it; Parquet is packed inside" for packing in PACKINGS},
    **dict.fromkeys(
        (".xlsx", ".xls", ".ods", ".numbers"), "save each sheet as CSV (UTF-8) in its own program"
    ),
    **dict.fromkeys((".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tgz", ".7z", ".rar"), _UNPACK),
    **dict.fromkeys(
        (
            ".arrow",
            ".feather",
            ".orc",
            ".avro",
            ".pkl",
            ".pickle",
            ".npy",
            ".npz",
            ".h5",
            ".hdf5",
            ".tfrecord",
        ),
        _AS_LINES,
    ),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3", ".mdb"), _AS_LINES),
}
"""Suffixes of data that is not read -> what to do with it."""

_SENTENCE = re.compile(r"[，。！？；～]|[.!?](\s|$)")  # marks that names of columns do not have
_DELIMITERS = (",", "\t", ";", "|")


def is_data_file(path: Path) -> bool:
    """Whether a folder's file is data that can be read, by its name."""
    return path.name.lower().endswith(SUFFIXES) and path.name not in _ABOUT_DATA


def data_files(folder: Path, what: str = "data file") -> list[Path]:
    """The data files of a folder and of all below it that is not hidden, in the order of their names.

    Raises:
        UserError: there is none; there is data of a kind that is not read, or one file twice, packed and not.
    """
    every = visible_files(folder)
    unread = [(file, cure) for file in every if (cure := _cure(file)) is not None]
    if unread:
        file, cure = unread[0]
        more = f" ({len(unread)} such files in this folder)" if len(unread) > 1 else ""
        raise UserError(f"{file}: this kind of file is not read; {cure}{more}. Read are {WANTED}")
    found = [file for file in every if is_data_file(file)]
    if not found:
        raise UserError(f"{folder}: no {what} in this folder; wanted {WANTED}")
    seen: dict[Path, Path] = {}
    for file in found:
        other = seen.setdefault(file.with_name(inner_name(file)), file)
        if other is not file:
            raise UserError(
                f"{other} and {file}: by their names one file twice, packed otherwise, whose records would count "
                "twice; move one of them away"
            )
    return found


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder but those that are hidden, or in a hidden folder (.cache, .ipynb_checkpoints)."""

    def hidden(file: Path) -> bool:
        return any(part.startswith(".") for part in file.relative_to(folder).parts)

    return sorted(file for file in folder.rglob("*") if file.is_file() and not hidden(file))


def _cure(path: Path) -> str | None:
    """What to do with data of a kind that is not read; None for all else."""
    name = path.name.lower()
    return next((cure for suffix, cure in _CURES.items() if name.endswith(suffix)), None)


def is_lines(path: Path) -> bool:
    """Whether a file holds one JSON object a line, by its name."""
    return inner_name(path).endswith(LINES)


def read_rows(path: Path, *, lines: bool = False) -> Iterator[Placed]:
    """The rows of one file in order. `lines`: each line of a .txt file is a document (else the whole file is one).

    Raises `UserError` for a file that cannot be read, is empty, has an unknown suffix or a foreign encoding.
    """
    if (cure := _cure(path)) is not None:
        raise UserError(f"{path}: this kind of file is not read; {cure}. Read are {WANTED}")
    with readable(path):
        check_not_empty(path)
        name = inner_name(path)
        if not name.endswith((*_TEXTS, ".parquet")):
            inside = f" (it holds {name})" if packing_of(path) == ".zip" else ""
            raise UserError(f"{path}: unknown kind of file{inside}; wanted {WANTED}")
        if name.endswith(".parquet"):
            if packing_of(path):
                raise UserError(f"{path}: {_CURES['.parquet.gz']} ({name})")
            yield from _parquet(path)
            return
        with open_text(path) as stream:
            if name.endswith(LINES):
                yield from json_lines(path, lines_in(stream))
            elif name.endswith(".json"):
                yield from json_file(path, stream)
            elif name.endswith((".csv", ".tsv")):
                yield from _csv(path, stream, "\t" if name.endswith(".tsv") else ",")
            elif lines:
                yield from _text_lines(path, stream)
            else:
                yield f"{path}:1", {"text": stream.read()}, ""


def _csv(path: Path, stream: TextIO, usual: str) -> Iterator[Placed]:
    csv.field_size_limit(LONGEST)
    first = stream.readline(LONGEST)
    delimiter = _delimiter(first, usual)
    # Strict: the other way drops quotes inside a cell, and takes all that follows an unclosed one as its text.
    reader = csv.reader(chain([first], _short_lines(path, stream)), delimiter=delimiter, strict=True)
    try:
        header = _header(path, next(reader, None), delimiter)
    except csv.Error as error:
        raise UserError(
            f"{path}:1: broken CSV in the names of the columns ({error}); check its quotes"
        ) from None
    line = reader.line_num + 1
    while True:
        place = f"{path}:{line}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield place, _broken_csv(place, line, reader.line_num, error), ""
            line = reader.line_num + 1
            continue
        line = reader.line_num + 1
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) != len(header):
            reason = (
                f"{len(cells)} cells, but the header names {len(header)} columns; put cells that contain "
                f"{_NAMES[delimiter]} in quotes"
            )
            yield place, BadRecord(place, "broken CSV", reason), delimiter.join(cells)
            continue
        yield place, dict(zip(header, cells, strict=True)), ""


def _short_lines(path: Path, stream: TextIO) -> Iterator[str]:
    """The lines behind the first; a quote may run over several, so that one that is too long cannot be passed over."""
    for number, line in enumerate(lines_in(stream), start=2):
        if isinstance(line, TooLongLine):
            raise UserError(f"{path}:{number}: {TOO_LONG}")
        yield line


_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


def _delimiter(header: str, usual: str) -> str:
    """What parts the names of the columns: the usual sign, or, where that gives a single one, another that gives more."""

    def cells(delimiter: str) -> int:
        return len(next(csv.reader([header], delimiter=delimiter), []))

    if cells(usual) > 1:
        return usual
    return max((usual, *_DELIMITERS), key=cells)


def _header(path: Path, names: list[str] | None, delimiter: str) -> list[str]:
    """The names of the columns; one without a name gets its number.

    Raises:
        UserError: there are none, they read like a record, or one stands twice.
    """
    if not names:
        raise UserError(
            f"{path}:1: no header; the first line of a {delimiter!r}-separated file names its columns"
        )
    for name in names:
        if len(name) > 80 or _SENTENCE.search(name):
            raise UserError(
                f"{path}:1: the first line reads like a record ({name[:40]!r}), not like names of columns; put a line "
                f"with the names in front, such as {delimiter.join(('prompt', 'completion'))!r}"
            )
        if name and names.count(name) > 1:
            raise UserError(
                f"{path}:1: {names.count(name)} columns are called {name!r}, and only one of them could be read; give "
                "each a name of its own"
            )
    return [name or f"column {number}" for number, name in enumerate(names, start=1)]


def _broken_csv(place: str, first: int, last: int, error: csv.Error) -> BadRecord:
    """A record whose quotes are wrong; what an unclosed one has swallowed is said."""
    if last <= first:
        return BadRecord(
            place,
            "broken CSV",
            f"broken CSV ({error}); check its quotes (one inside a quoted cell is doubled)",
        )
    reason = (
        f"broken CSV: a quote that opens in this record is not closed rightly up to line {last} ({error}), so that the "
        f"{last - first} lines behind this one were not read; close it, or double the quotes inside a quoted cell"
    )
    return BadRecord(place, "broken CSV", reason, hides=True)


def _text_lines(path: Path, stream: TextIO) -> Iterator[Placed]:
    for number, line in enumerate(lines_in(stream), start=1):
        text, place = line.rstrip("\r\n"), f"{path}:{number}"
        if isinstance(line, TooLongLine):
            yield place, BadRecord(place, "too long", TOO_LONG), text
        elif text.strip():
            yield place, {"text": text}, text


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path}: two columns are called {twice!r}; give each a name of its own")
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row, ""
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a whole Parquet file ({error}); write or fetch it again") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number + 1}: a text that is not UTF-8 from this row on ({error}); write it again"
        ) from None
