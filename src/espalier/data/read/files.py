"""Files -> rows with their places: JSON lines, JSON, CSV, TSV, Parquet and plain text, gzipped or not.

A row's place is "FILE:LINE" (for Parquet the row's number). What cannot be read as a row comes out as a
`BadRecord` in its place, so that one broken line does not hide the others. A file that is not UTF-8 (or marked
UTF-16) is an error with the cure: guessing an encoding would train on garbage. Meaning is given by `formats`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from espalier.data.read.json_files import Placed, json_file, json_lines
from espalier.data.records import BadRecord
from espalier.errors import UserError

_PIECE = 1 << 20
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
    with _told(path):
        _check_not_empty(path)
        if name.endswith(".parquet"):
            yield from _parquet(path)
            return
        with _open_text(path) as stream:
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


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file with any suffix, as they are, line breaks included.

    Raises `UserError` for a file that cannot be read, is empty or has a foreign encoding.
    """
    with _told(path):
        _check_not_empty(path)
        with _open_text(path) as stream:
            yield from stream


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of every line of a text file with any suffix, blank lines included, line breaks taken off.

    Raises `UserError` for a file that cannot be read or has a foreign encoding.
    """
    with _told(path), _open_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            yield f"{path}:{number}", line.rstrip("\r\n")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What goes wrong with reading a file, as the user's to mend."""
    try:
        yield
    except UnicodeDecodeError:
        raise _foreign_encoding(path) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); check that the file is whole and may be read"
        ) from None


def _check_not_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise UserError(
            f"{path}: the file is empty; wanted at least one record; fill it or remove it from `dataset`"
        )


def _open_bytes(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _open_text(path: Path) -> TextIO:
    # newline="\n": only a line feed ends a line; a bare CR or U+2028 inside a JSON string does not.
    newline = "" if path.name.lower().endswith((".csv", ".tsv")) else "\n"
    return io.TextIOWrapper(_open_bytes(path), encoding=_encoding(path), newline=newline)


def _encoding(path: Path) -> str:
    """UTF-8 with or without a mark; UTF-16 by its mark, or by the NUL bytes that its Latin characters have."""
    with _open_bytes(path) as stream:
        head = stream.read(4)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(head) >= 2 and head[1] == 0:
        return "utf-16-le"
    if head.startswith(b"\0"):
        return "utf-16-be"
    return "utf-8-sig"


def _foreign_encoding(path: Path) -> UserError:
    """Which byte is the first bad one, what the file may be, and how to convert it; read piece by piece."""
    encoding = _encoding(path)
    decoder = codecs.getincrementaldecoder(encoding.removesuffix("-sig"))()
    place = line = 0
    bad = b"?"
    with _open_bytes(path) as stream:
        while piece := stream.read(_PIECE):
            kept = decoder.getstate()[0]
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as error:
                start = error.start - len(kept)
                place, line = place + start, line + piece.count(b"\n", 0, max(start, 0))
                bad = (kept + piece)[error.start : error.start + 1]
                break
            place, line = place + len(piece), line + piece.count(b"\n")
        else:  # it ends in the middle of a character
            kept = decoder.getstate()[0]
            place, bad = place - len(kept), kept[:1] or b"?"
    guess, cure = ("; it reads as GBK / GB18030", "GB18030") if _is_gbk(path) else ("", "ITS-ENCODING")
    return UserError(
        f"{path}:{line + 1}: byte {place} (0x{bad[0]:02x}) is not {encoding.removesuffix('-sig').upper()}{guess}; "
        f"wanted UTF-8: `iconv -f {cure} -t UTF-8 {path.name} > new-{path.name.removesuffix('.gz')}`"
    )


def _is_gbk(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("gb18030")()
    with _open_bytes(path) as stream:
        try:
            while piece := stream.read(_PIECE):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


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
