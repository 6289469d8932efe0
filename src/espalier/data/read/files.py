"""Files -> rows with their places: JSON lines, JSON, CSV, TSV, Parquet and plain text, gzipped or not.

A row's place is "FILE:LINE" (for Parquet the row's number). What cannot be read as a row comes out as a
`BadRecord` in its place, so that one broken line does not hide the others. Encodings are known to `lines`, meaning is
given by `formats`.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from espalier.data.read.json_files import json_file
from espalier.data.read.lines import Placed, check_not_empty, json_lines, open_text, readable
from espalier.data.records import BadRecord
from espalier.errors import UserError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".tsv", ".parquet", ".txt", ".txt.gz")


_SENTENCE = re.compile(r"[，。！？；～]|[.!?](\s|$)")  # marks that names of columns do not have


def is_data_file(path: Path) -> bool:
    """Whether a folder's file is data; LLaMA-Factory's `dataset_info.json` describes data and is none."""
    return path.name.lower().endswith(SUFFIXES) and path.name != "dataset_info.json"


def read_rows(path: Path, *, lines: bool = False) -> Iterator[Placed]:
    """The rows of one file in order. `lines`: each line of a .txt file is a document (else the whole file is one).

    Raises `UserError` for a file that cannot be read, is empty, has an unknown suffix or a foreign encoding.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path}: unknown kind of file; wanted one of {', '.join(SUFFIXES)}")
    name = path.name.lower().removesuffix(".gz")
    with readable(path):
        check_not_empty(path)
        if name.endswith(".parquet"):
            yield from _parquet(path)
            return
        with open_text(path) as stream:
            if name.endswith(".jsonl"):
                yield from json_lines(path, stream)
            elif name.endswith(".json"):
                yield from json_file(path, stream)
            elif name.endswith((".csv", ".tsv")):
                yield from _csv(path, stream, "\t" if name.endswith(".tsv") else ",")
            elif lines:
                yield from _text_lines(path, stream)
            else:
                yield f"{path}:1", {"text": stream.read()}, ""


def _csv(path: Path, stream: TextIO, delimiter: str) -> Iterator[Placed]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(stream, delimiter=delimiter)
    header = next(reader, None)
    if not header:
        raise UserError(
            f"{path}:1: no header; the first line of a {delimiter!r}-separated file names its columns"
        )
    for name in header:
        if len(name) > 80 or _SENTENCE.search(name):
            raise UserError(
                f"{path}:1: the first line reads like a record ({name[:40]!r}), not like names of columns; put a line "
                f"with the names in front, such as {delimiter.join(('prompt', 'completion'))!r}"
            )
    line = reader.line_num + 1
    while True:
        place = f"{path}:{line}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield place, BadRecord(place, "broken CSV", f"broken CSV ({error}); check its quotes"), ""
            line = reader.line_num + 1
            continue
        line = reader.line_num + 1
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) != len(header):
            reason = f"{len(cells)} cells, but the header names {len(header)} columns; put cells that contain commas in quotes"
            yield place, BadRecord(place, "broken CSV", reason), delimiter.join(cells)
            continue
        yield place, dict(zip(header, cells, strict=True)), ""


def _text_lines(path: Path, stream: TextIO) -> Iterator[Placed]:
    for number, line in enumerate(stream, start=1):
        text = line.rstrip("\r\n")
        if text.strip():
            yield f"{path}:{number}", {"text": text}, text


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row, ""
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a whole Parquet file ({error}); write or fetch it again") from None
