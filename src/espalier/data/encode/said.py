"""What is said in a turn, in parts, and whether a text shows them: so that nothing of a conversation is lost on
the way; and a record that a template refuses to write."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from espalier.data.encode.encoding import Piece
from espalier.data.records import Message, Record
from espalier.errors import UserError

_PYTHON = {"true": ("True",), "false": ("False",), "null": ("None",)}
"""ChatGLM3 calls a tool as a function of Python."""
LEFT_TO_TEMPLATE = "left to the template:"
THOUGHTS, TEXT, CALLS = "thoughts", "text", "calls"


def parts_of(message: Message) -> list[tuple[str, str]]:
    """(`THOUGHTS`, `TEXT` or `CALLS`; the words) of all that an assistant says."""
    parts = [(THOUGHTS, message.thoughts), *_cut(message.content)]
    for call in json.loads(message.calls) if message.calls else ():
        function = call["function"]
        parts += [(CALLS, leaf) for leaf in (function["name"], *_leaves(function["arguments"]))]
    return [(what, part.strip()) for what, part in parts if what and part.strip()]


def marked(message: Message) -> tuple[Message, list[tuple[str, str, str]]]:
    """The turn with a mark in place of each of its parts; and the marks, each with what it stands for and its words.

    A template that does not write a mark has lost that part, however often the same words stand elsewhere.
    """
    marks: list[tuple[str, str, str]] = []

    def mark(what: str, part: str) -> str:
        if not what or not part.strip():
            return part
        marks.append((f"⁂{len(marks)}⁂", what, part.strip()))
        return marks[-1][0]

    def leaf(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: leaf(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [leaf(inner) for inner in value]
        return mark(CALLS, _as_text(value)) or value

    thoughts = mark(THOUGHTS, message.thoughts)
    content = "".join(mark(what, part) for what, part in _cut(message.content))
    calls = json.loads(message.calls) if message.calls else []
    for call in calls:
        function = call["function"]
        call["function"] = {"name": mark(CALLS, function["name"]), "arguments": leaf(function["arguments"])}
    return replace(
        message, content=content, thoughts=thoughts, calls=json.dumps(calls) if calls else ""
    ), marks


def is_shown(part: str, text: str) -> bool:
    """Whether a text holds a part, as templates may write it."""
    return any(written in text for written in ways_to_write(part))


def ways_to_write(text: str) -> tuple[str, ...]:
    """The ways in which a template may write a text: without its outer white space, inside of JSON or of Python."""
    text = text.strip()
    inside = json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1], repr(text)[1:-1]
    return text, *inside, *_PYTHON.get(text, ())


def not_in(branches: Sequence[Sequence[Piece]], record: Record) -> list[str]:
    """Causes for which something of a record is not in its branches: its own notes, and its template's manner."""
    said = record.branches if record.answers else [record.prompt]
    causes = set(record.notes)
    for messages, pieces in zip(said, branches, strict=False):
        causes |= _left_to_template(messages, "".join(piece.text for piece in pieces))
    return sorted(causes)


def _left_to_template(messages: Sequence[Message], text: str) -> set[str]:
    causes = set()
    if any(said != said.strip() and said not in text for said in (message.content for message in messages)):
        causes.add(f"{LEFT_TO_TEMPLATE} white space at the ends of turns, which it trims")
    thoughts = [said for message in messages for what, said in parts_of(message) if what == THOUGHTS]
    if any(max(map(text.count, ways_to_write(said))) < thoughts.count(said) for said in thoughts):
        causes.add(f"{LEFT_TO_TEMPLATE} thoughts of turns that are only read, which it leaves out")
    return causes


def _cut(content: str) -> list[tuple[str, str]]:
    """A content cut at <think> and </think>, these as ("", mark); whole where it closes no thoughts."""
    if "</think>" not in content:
        return [(TEXT, content)]
    found = re.split("(</?think>)", content)
    kinds = [
        "" if at % 2 else THOUGHTS if found[at + 1 : at + 2] == ["</think>"] else TEXT
        for at in range(len(found))
    ]
    return list(zip(kinds, found, strict=True))


def _leaves(value: Any) -> list[str]:
    """The names and the values in the arguments of a call, as text."""
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in (name, *_leaves(inner))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _leaves(inner)]
    return [_as_text(value)]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def beginning(text: str) -> str:
    """A text as it may stand in a message."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def common_length(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


class RefusedRecordError(UserError):
    """A template that refuses a record, with the record's place in front.

    Attributes:
        reason: without the place.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.reason = reason


def located(render: Any, record: Any, encoder: Any) -> Any:
    """What `render` makes of a record; a template's complaint is raised as `RefusedRecordError`."""
    try:
        return render(record, encoder)
    except UserError as error:
        raise RefusedRecordError(record.source, str(error)) from None
