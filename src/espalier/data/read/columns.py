"""The columns of a row by their names here: which hold a prompt, which an answer; and that prompt, as turns.

A column that holds null counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.data.read.dialogues import as_history, as_pairs, is_waiting, waiting_dialogue
from espalier.data.read.messages import Bad, as_text
from espalier.data.read.turns import as_messages
from espalier.data.records import SYSTEM, USER, Message, Messages

Row = Mapping[str, Any]

CONVERSATIONS = ("messages", "conversations", "conversation")
CHOSEN = ("chosen", "selected", "response_chosen")
REJECTED = ("rejected", "response_rejected", "rejected_response", "rejected_messages")
COMPLETION = ("completion", "response", "answer", "solution", "target")
_QUESTION = ("prompt", "question", "query", "problem")
CONVERSATION = (*CONVERSATIONS, "prompt", "query", "instruction", "input", "history", "system", "tools")
"""Columns that become the turns of a prompt; a reward sees those, and every other column as it is."""
COLUMNS = {
    "text": "`text`",
    "chat": "`messages`, `conversations`, `instruction` and `output`, or `prompt` and `completion`",
    "preference": "`prompt`, `chosen` and `rejected` (or `answers` with scores)",
    "ranking": "`prompt` and `answers` with scores (or `chosen` and `rejected`)",
    "prompt": "`prompt`, `messages`, `conversations` or `instruction`",
    "unpaired": "`messages` (or `prompt` and `completion`) and `label`",
}
"""Kind -> the columns that it can be read from, for messages."""


def conversation_of(row: Row, column: str) -> Messages:
    """A column that holds a dialogue, the row's system text before it."""
    read = as_pairs if column == "conversation" else as_messages
    return _with_system(row, read(row[column], f"column {column!r}"))


def has_prompt(row: Row) -> bool:
    """Whether a column holds a prompt."""
    return _asking(row) is not None or first_of(row, ("instruction", *CONVERSATIONS)) is not None


def has_marked_prompt(row: Row) -> bool:
    """Whether the prompt is a text that ends with "Assistant:"."""
    name = _asking(row)
    return name is not None and isinstance(row[name], str) and is_waiting(row[name])


def _asking(row: Row) -> str | None:
    """The column that holds a question, where the row is no dialogue and no instruction."""
    both = row.get("input") is not None and row.get("target") is not None
    return first_of(row, _QUESTION) or ("input" if both else None)


def prompt_of(row: Row) -> Messages:
    """The prompt of a row whose answers stand in columns of their own: [system], earlier turns, the question."""
    dialogue = first_of(row, CONVERSATIONS)
    if dialogue is not None:
        return conversation_of(row, dialogue)
    if row.get("instruction") is not None:
        names = ["instruction", "input"]
    else:
        first = _asking(row)
        if first is None:
            raise missing(row, "prompt")
        if not isinstance(row[first], str):
            return _with_system(row, as_messages(row[first], f"column {first!r}"))
        turns = waiting_dialogue(row[first], f"column {first!r}")
        if turns is not None:
            return _with_system(row, turns)
        # LLaMA-Factory's own names: `prompt` is the instruction and `query` its input. A question about a passage
        # cannot be answered without it.
        names = {"prompt": ["prompt", "query"], "question": ["context", "question"]}.get(first, [first])
    texts = [as_text(row.get(name), f"column {name!r}", may_be_empty=True) for name in names]
    question = "\n".join(text for text in texts if text)
    asked = names[names[0] == "context"]
    if not question.strip():
        raise Bad("empty prompt", f"column {asked!r} is empty; fill it in or remove the record")
    return _with_system(row, (*as_history(row.get("history")), Message(USER, question)))


def _with_system(row: Row, messages: Messages) -> Messages:
    system = as_text(row.get("system"), "column 'system'", may_be_empty=True)
    if not system:
        return messages
    if messages[0].role != SYSTEM:
        return (Message(SYSTEM, system), *messages)
    if messages[0].content != system:
        raise Bad(
            "two system texts", "column 'system' and the first turn hold different system texts; keep one"
        )
    return messages


def prefix_of(row: Row) -> str:
    return as_text(row.get("prefix"), "column 'prefix'", may_be_empty=True)


def first_of(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def columns_of(row: Row) -> str:
    """The names of the first twelve columns, each cut to 40 characters, as a message may show them."""
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in map(str, row)]
    empty = [" (null)" if value is None else "" for value in row.values()]
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return (
        ", ".join(f"`{name}`{null}" for name, null in zip(shown[:12], empty, strict=False)) + more or "(none)"
    )


def missing(row: Row, kind: str) -> Bad:
    return Bad(
        "missing column",
        f"found the columns {columns_of(row)}, wanted {COLUMNS[kind]}; rename yours with `columns: {{name here: name there}}`",
    )
