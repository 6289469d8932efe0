"""JSON -> rows with their places, read piece by piece: memory holds one record, not the file.

A row that is broken comes out as a `BadRecord` in its place. Opening files and other kinds of them is `files`' task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from espalier.data.read.lines import (
    DECODER,
    LONGEST,
    TOO_LONG,
    Placed,
    json_lines,
    json_object,
    line_in,
    lines_in,
    open_text,
    readable,
    told,
)
from espalier.data.records import BadRecord
from espalier.errors import UserError

_SPACE = re.compile(r"\s*")
_CHUNK = 1 << 16
_NEAR = 16  # an error so close to the end of what was read may only say that more must be read


def json_file(path: Path, stream: TextIO) -> Iterator[Placed]:
    """A .json file: an array of objects, or JSON lines, or one object."""
    window = Window(stream)
    window.skip_space()
    if not window.left:
        raise UserError(f"{path}: the file holds nothing but white space; wanted a list of records")
    if window.text[window.at] == "[":
        window.move(window.at + 1)
        yield from _array(path, window)
        return
    first = window.line
    try:
        while "\n" not in window.text[window.at :] and window.more():
            pass
    except ValueError as error:
        yield f"{path}:{first}", BadRecord(f"{path}:{first}", "too long", str(error), hides=True), ""
        return
    rest = window.text[window.at :]
    line = rest.split("\n", 1)[0]
    try:
        only = DECODER.decode(line)
    except (ValueError, RecursionError):
        yield from _whole(path, rest + stream.read(LONGEST), first)
        return
    if isinstance(only, dict) and not rest.partition("\n")[2].strip() and _is_table(only):
        yield from _single(path, only, first)
        return
    yield from json_lines(path, _lines(rest, stream), first)


def _whole(path: Path, text: str, first: int) -> Iterator[Placed]:
    """A file whose first line is no JSON: one value on several lines, or JSON lines with a broken one in front."""
    if len(text) >= LONGEST:
        raise UserError(f"{path}:{first}: broken JSON, or {TOO_LONG}")
    try:
        row = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        lines = list(json_lines(path, iter(text.split("\n")), first))
        if len(lines) == 1 or any(isinstance(row, dict) for _, row, _ in lines):
            yield from lines
            return
        at = error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0
        place = f"{path}:{first + at}"
        comment = "; JSON has no comments" if text.lstrip().startswith(("//", "/*", "#")) else ""
        reason = f"broken JSON{told(error)}{comment}; no record of this file could be read; repair it or fetch it again"
        yield place, BadRecord(place, "broken JSON", reason, hides=True), text[:2000]
    else:
        yield from _single(path, row, first)


def whole_json(path: Path) -> Any:
    """The one value of a JSON file of any encoding that `lines` reads.

    Raises:
        UserError: it cannot be read, is empty, or is no JSON; with file, line and cure.
    """
    with readable(path), open_text(path) as stream:
        text = stream.read()
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"{path}{line}: broken JSON{told(error)}; is the file whole? Fetch it again"
        ) from None


def _single(path: Path, row: Any, line: int) -> Iterator[Placed]:
    """A file of one value: a record, or an object of records by their names, which are numbered from 1."""
    if isinstance(row, dict) and _is_table(row):
        for number, value in enumerate(row.values(), start=1):
            yield f"{path}:{number}", value, ""
    else:
        yield f"{path}:{line}", json_object(f"{path}:{line}", row), ""


def _is_table(row: dict[str, Any]) -> bool:
    """Whether an object is {name: record}: two or more objects that all have the same keys, and those not role and text."""
    values = list(row.values())
    if len(values) < 2 or not all(isinstance(value, dict) for value in values):
        return False
    keys = set(values[0])
    turn = keys <= {"role", "content", "from", "value"}
    return bool(keys) and not turn and all(set(value) == keys for value in values)


def _lines(rest: str, stream: TextIO) -> Iterator[str]:
    """The lines of a text that goes on in a stream."""
    *whole, begun = rest.split("\n")
    yield from whole
    yield line_in(stream, begun)
    yield from lines_in(stream)


class Window:
    """What was read of a stream: `text`, used up to `at`, which is a line and column (from 1) of the file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.text, self.at = "", 0
        self.line, self.column = 1, 1

    @property
    def left(self) -> bool:
        return self.at < len(self.text)

    def more(self) -> bool:
        """Reads on, each time as much again as is left, so that a long record is not looked at too often."""
        rest = self.text[self.at :]
        if len(rest) > LONGEST:
            raise ValueError(TOO_LONG)
        chunk = self._stream.read(max(_CHUNK, len(rest)))
        if chunk:
            self.text, self.at = rest + chunk, 0
        return bool(chunk)

    def move(self, to: int) -> None:
        """Uses the text up to `to`."""
        self.line, self.column = self.place(to)
        self.at = to

    def skip_space(self) -> None:
        """Moves to what is no white space, or to the end."""
        while True:
            self.move(_SPACE.match(self.text, self.at).end())  # type: ignore[union-attr]
            if self.left or not self.more():
                return

    def place(self, to: int) -> tuple[int, int]:
        """(line, column) of a place in the text, not before `at`."""
        lines = self.text.count("\n", self.at, to)
        column = to - self.text.rfind("\n", self.at, to) if lines else self.column + to - self.at
        return self.line + lines, column


def _array(path: Path, window: Window) -> Iterator[Placed]:
    """The objects of an array one by one, each with its line; what follows a break cannot be read."""
    while True:
        window.skip_space()
        place = f"{path}:{window.line}"
        if window.text.startswith("]", window.at):
            window.move(window.at + 1)
            window.skip_space()
            if window.left:
                reason = "text follows behind the array's end; remove it"
                yield place, BadRecord(place, "broken JSON", reason, hides=True), ""
            return
        try:
            row, end = _next(window)
        except json.JSONDecodeError as error:
            line, column = window.place(error.pos)
            where = f"{path}:{line}"
            reason = (
                f"broken JSON at column {column} ({error.msg}), in the record that begins at line {window.line}; the "
                "file may be cut off; repair it or fetch it again; nothing behind this place was read"
            )
            yield (
                where,
                BadRecord(where, "broken JSON", reason, hides=True),
                window.text[window.at : window.at + 2000],
            )
            return
        except (ValueError, RecursionError) as error:
            reason = (
                f"broken JSON{told(error)}; nothing behind the beginning of this record was read; repair it"
            )
            yield (
                place,
                BadRecord(place, "broken JSON", reason, hides=True),
                window.text[window.at : window.at + 2000],
            )
            return
        if isinstance(row, ValueError):
            reason = f"broken JSON{told(row)}; repair the record or remove it"
            yield place, BadRecord(place, "broken JSON", reason), window.text[window.at : end]
        else:
            yield place, json_object(place, row), ""
        window.move(end)


def _value(text: str, at: int) -> tuple[Any, int]:
    """A JSON value and where it ends; a `ValueError` in its place where it is one, but must not be read."""
    try:
        return DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        return error, json.JSONDecoder().raw_decode(text, at)[1]


def _next(window: Window) -> tuple[Any, int]:
    """The value at the window's beginning, and where what follows it and its comma begins."""
    while True:
        text = window.text
        try:
            if not window.left:
                raise json.JSONDecodeError("the array is not closed", text, window.at)
            row, end = _value(text, window.at)
            after = _SPACE.match(text, end).end()  # type: ignore[union-attr]
            if text[after : after + 1] == "]":
                return row, after
            if text[after : after + 1] != ",":
                message = "the array ends without ]" if after == len(text) else "no comma"
                raise json.JSONDecodeError(message, text, after)
            return row, after + 1
        except json.JSONDecodeError as error:
            may_go_on = error.msg.startswith("Unterminated string") or error.pos >= len(text) - _NEAR
            if not (may_go_on and window.more()):
                raise
