"""What a cleaning step looks at in a row of any format: the prompt, the text that tells copies apart, the kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espalier.corpora.made import Without, key_of
from espalier.data.read.formats import parse_row
from espalier.data.read.parts import CHOSEN, QUESTION, REJECTED, as_label, first_of
from espalier.data.records import BadRecord, LeftOut, Prompt, Ranking, Record, Text, Unpaired, texts_of


@dataclass(frozen=True, slots=True)
class View:
    """A row as cleaning sees it.

    >>> viewed({"instruction": "2+3=?", "output": "5"}, "a.jsonl:1")
    View(kind='chat', key='2+3=?', text='2+3=?\\n5')
    """

    kind: str
    key: str
    """What must not stand in two parts: the user's words before the first answer, or a document's text."""
    text: str
    """Everything said, or for a ranking the prompt and the best answer (the others may be drawn by chance)."""


def viewed(row: Mapping[str, Any], place: str) -> View | Without:
    """A row that is no record, or that teaches nothing, is a `Without` with the reader's own cause."""
    kind = _kind(row)
    outcome = parse_row(row, place, kind)
    if kind == "chat" and isinstance(outcome, BadRecord) and outcome.cause in ("no answer", "odd role order"):
        prompt = parse_row(row, place, "prompt")
        kind, outcome = ("prompt", prompt) if isinstance(prompt, Prompt) else (kind, outcome)
    if kind == "ranking" and isinstance(outcome, LeftOut):
        kind, outcome = "chat", parse_row(row, place, "chat")
    if isinstance(outcome, (BadRecord, LeftOut)):
        return Without(place, outcome.cause, str(row))
    return View(kind, _key(outcome), "\n".join(texts_of(outcome)))


def _kind(row: Mapping[str, Any]) -> str:
    if isinstance(row.get("answers"), list):
        return "ranking"
    if first_of(row, CHOSEN) and first_of(row, REJECTED):
        return "preference"
    output = row.get("output")
    if isinstance(output, list) and len(output) == 2:
        return "preference"
    if "label" in row and as_label(row["label"]) is not None:
        return "unpaired"
    asked = any(name in row for name in ("messages", "conversations", "instruction", *QUESTION))
    asked = asked or ("input" in row and "target" in row)
    return "text" if not asked and ("text" in row or "content" in row) else "chat"


def _key(record: Record) -> str:
    if isinstance(record, Text):
        return record.text
    if isinstance(record, (Ranking, Unpaired)):
        return key_of(Prompt(record.prompt))
    return key_of(record)
