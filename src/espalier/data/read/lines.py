"""Text files, line by line: opened in their encoding, read as JSON lines, cut into blocks for those who work on them.

A file that is not UTF-8 (or marked UTF-16) is an error with the cure: guessing an encoding would train on garbage.
"""

from __future__ import annotations

import codecs
import io
import json
import shlex
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from espalier.data.read.packed import ERRORS, inner_name, open_bytes, packing_of, unpacked
from espalier.data.records import BadRecord
from espalier.errors import UserError

# (place, the row or what is wrong with it, the raw text where it is a line)
Placed = tuple[str, dict[str, Any] | BadRecord, str]

_PIECE = 1 << 20
LONGEST = 1 << 28
"""The most characters of a record: more (a file without line breaks) would take several times its size in memory."""
TOO_LONG = (
    f"a record of more than {LONGEST >> 20} million characters; is it a file without line breaks? Put each record on a line "
    "of its own, or cut the text"
)
RECORDS, CHARACTERS = 512, 1 << 20
"""A block ends with whichever is reached first."""


class TooLongLine(str):
    """The beginning of a line that is too long to be held."""


def lines_in(stream: TextIO) -> Iterator[str]:
    """The lines of a stream as they are; of one that is longer than `LONGEST`, which is passed over, a `TooLongLine`."""
    while line := line_in(stream):
        yield line


def line_in(stream: TextIO, begun: str = "") -> str:
    """The next line of a stream, whose beginning may have been read before; "" at the end."""
    line = begun + stream.readline(LONGEST)
    if len(line) < LONGEST or line.endswith("\n"):
        return line
    head = line[:200]
    while line and not line.endswith("\n"):
        line = stream.readline(_PIECE)
    return TooLongLine(head)


@dataclass
class Block:
    """Rows that stand one after the other: as lines of JSON that begin at line `first`, or as they were read."""

    path: str = ""
    first: int = 1
    lines: list[str] = field(default_factory=list)
    rows: list[Placed] = field(default_factory=list)

    def placed(self) -> Iterable[Placed]:
        return json_lines(self.path, self.lines, self.first) if self.lines else self.rows  # type: ignore[arg-type]


def line_blocks(path: Path) -> Iterator[Block]:
    """The lines of a file of JSON lines, not parsed yet. Raises what `lines_of` does."""
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


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file with any suffix, as they are, line breaks included.

    Raises `UserError` for a file that cannot be read, is empty or has a foreign encoding.
    """
    with readable(path):
        check_not_empty(path)
        with open_text(path) as stream:
            yield from lines_in(stream)


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of every line of a text file with any suffix, blank lines included, line breaks taken off.

    Raises `UserError` for a file that cannot be read or has a foreign encoding.
    """
    with readable(path), open_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            yield f"{path}:{number}", line.rstrip("\r\n")


def json_lines(path: Path, lines: Iterable[str], start: int = 1) -> Iterator[Placed]:
    """One object a line; blank lines are counted and skipped."""
    for number, line in enumerate(lines, start=start):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        place = f"{path}:{number}"
        if isinstance(line, TooLongLine):
            yield place, BadRecord(place, "too long", TOO_LONG), text
            continue
        try:
            row = DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            reason = f"broken JSON{told(error)}; {_cure(text, error)}"
            yield place, BadRecord(place, "broken JSON", reason), text
        else:
            yield place, json_object(place, row), text


def json_object(place: str, row: Any) -> dict[str, Any] | BadRecord:
    if isinstance(row, dict):
        return row
    return BadRecord(
        place, "not an object", f"a bare {type(row).__name__}, wanted a JSON object with named columns"
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; json's own way would keep the last of two columns of one name, and say nothing."""
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_once)
"""JSON as `json` reads it, but a name that stands twice in an object is a ValueError."""


def told(error: Exception) -> str:
    """What is wrong with JSON, as it goes on behind "broken JSON"."""
    if isinstance(error, json.JSONDecodeError):
        return f" at column {error.colno} ({error.msg})"
    if isinstance(error, RecursionError):
        return " (objects nested too deeply to be read)"
    return f" ({error})"


def _cure(text: str, error: Exception) -> str:
    text = text.strip()
    if text == "[":
        return "is the file one JSON array? Then its name must end with .json"
    if text.startswith(("//", "/*", "#")):
        return "JSON has no comments; remove the line"
    if (
        isinstance(error, json.JSONDecodeError)
        and error.msg == "Extra data"
        and text[error.pos :].lstrip()[:1] == "{"
    ):
        return "put each record on a line of its own"
    return "repair the line or remove it"


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong with reading a file, as the user's to mend."""
    try:
        yield
    except UnicodeDecodeError:
        raise _foreign_encoding(path) from None
    except (*ERRORS, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); check that the file is whole and may be read"
        ) from None


def check_not_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise UserError(
            f"{path}: the file is empty; wanted at least one record; fill it or remove it from `dataset`"
        )


def open_text(path: Path) -> TextIO:
    # newline="\n": only a line feed ends a line; a bare CR or U+2028 inside a JSON string does not.
    newline = "" if inner_name(path).endswith((".csv", ".tsv")) else "\n"
    return io.TextIOWrapper(open_bytes(path), encoding=_encoding(path), newline=newline)


def _encoding(path: Path) -> str:
    """UTF-8 with or without a mark; UTF-16 by its mark, or by the NUL bytes that its Latin characters have."""
    with open_bytes(path) as stream:
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
    with open_bytes(path) as stream:
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
    plain = path.name[: len(path.name) - len(packing_of(path))]
    packed, source = unpacked(path), "" if packing_of(path) else f" {shlex.quote(path.name)}"
    return UserError(
        f"{path}:{line + 1}: byte {place} (0x{bad[0]:02x}) is not {encoding.removesuffix('-sig').upper()}{guess}; "
        f"wanted UTF-8: `{packed}iconv -f {cure} -t UTF-8{source} > {shlex.quote(f'new-{plain}')}`"
    )


def _is_gbk(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("gb18030")()
    with open_bytes(path) as stream:
        try:
            while piece := stream.read(_PIECE):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True
