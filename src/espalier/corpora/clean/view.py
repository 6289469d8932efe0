"""What a cleaning step looks at in a row of any format: the prompt, the text that tells copies apart, the kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espalier.corpora.made import Omission, key_of
from espalier.data.read.formats import own_kind
from espalier.data.read.messages import Bad
from espalier.data.read.rows import parse_row
from espalier.data.records import BadRecord, LeftOut, Record


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


def viewed(row: Mapping[str, Any], place: str) -> View | Omission:
    """A row that is no record, or that teaches nothing, is an `Omission` with the reader's own cause."""
    try:
        kind = own_kind(row).replace("prompt", "chat")  # what a chat lacks is said first
    except Bad as bad:
        return Omission(place, bad.cause, str(row), bad.reason)
    outcome = parse_row(row, place, kind)
    if kind == "chat" and isinstance(outcome, BadRecord) and outcome.cause in ("no answer", "odd role order"):
        prompt = parse_row(row, place, "prompt")
        outcome = prompt if isinstance(prompt, Record) else outcome
    if kind == "ranking" and isinstance(outcome, LeftOut):
        outcome = parse_row(row, place, "chat")
    if isinstance(outcome, (BadRecord, LeftOut)):
        return Omission(place, outcome.cause, str(row), getattr(outcome, "reason", ""))
    key = outcome.text if outcome.kind == "text" else key_of(outcome)
    return View(outcome.kind, key, "\n".join(outcome.texts))
