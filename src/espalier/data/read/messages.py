"""What a user's row says, checked: values as text and labels, `Message`s in their order.

Every function raises `Bad` with a short cause and a reason that names the cure; none repairs anything.
"""

from __future__ import annotations

import json
import re
from typing import Any

from espalier.data.records import ASSISTANT, SYSTEM, TOOL, USER, Messages

_HALF = re.compile("[\ud800-\udfff]")  # JSON can write half of a character; no tokenizer takes it


class Bad(Exception):
    """A row is no record; becomes a `BadRecord` at the place where the row's source is known."""

    def __init__(self, cause: str, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause
        self.reason = reason


def shown(value: Any) -> str:
    """A value as it may stand in an error message: its kind and the beginning of it."""
    if value is None:
        return "null"
    kinds = {
        bool: "true/false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    text = json.dumps(value, ensure_ascii=False, default=str)
    return (
        f"{kinds.get(type(value), type(value).__name__)} ({text if len(text) <= 60 else text[:57] + '...'})"
    )


def as_text(value: Any, what: str, *, may_be_empty: bool = False) -> str:
    """`value` if it is text. `what` names the place ("column 'output'").

    Raises `Bad` for anything but text, and for empty or blank text unless `may_be_empty`, when null is "".
    """
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        if value is None:
            raise Bad("empty text", f"{what} is null, wanted text; fill it in or remove the record")
        raise Bad(
            "not text", f"{what} holds {shown(value)}, wanted text; put it in quotes or name another column"
        )
    if not may_be_empty and not value.strip():
        raise Bad("empty text", f"{what} is empty; fill it in or remove the record")
    if not value.isascii() and _HALF.search(value):
        raise Bad(
            "broken character",
            f"{what} holds half a character (a lone surrogate such as \\ud83d); repair the text",
        )
    return value


def as_label(value: Any) -> bool | None:
    """True or False by any of the names that labels have; None for anything else."""
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None


def check_order(messages: Messages, what: str, *, ends_with: str | None = None) -> None:
    """Raises `Bad` unless turns go: [system], user, assistant, (user or tool), assistant, …

    Tool turns may follow each other. `ends_with` "assistant": an answered conversation; "prompt": one that
    waits for the assistant.
    """
    before = None
    for number, message in enumerate(messages, start=1):
        role = message.role
        allowed = {
            None: (SYSTEM, USER),
            SYSTEM: (USER,),
            USER: (ASSISTANT,),
            ASSISTANT: (USER, TOOL),
            TOOL: (ASSISTANT, TOOL),
        }[before]
        if role not in allowed:
            place = f"after {before}" if before else "first"
            raise Bad(
                "odd role order",
                f"{what}: turn {number} is {role} {place}, wanted {' or '.join(allowed)}; "
                "merge or remove turns so that user and assistant alternate",
            )
        before = role
    if ends_with == ASSISTANT and before != ASSISTANT:
        raise Bad(
            "no answer", f"{what} ends with a {before} turn that nobody answers; answer it or remove it"
        )
    if ends_with == "prompt" and before not in (USER, TOOL):
        raise Bad(
            "no question", f"{what} ends with a {before} turn, wanted a user turn that waits for an answer"
        )


def parted(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Two dialogues as (common prompt, rest, rest); the prompt ends before an assistant's turn of both. Raises `Bad`."""
    for messages, what in ((chosen, "the chosen dialogue"), (rejected, "the rejected dialogue")):
        check_order(messages, what, ends_with=ASSISTANT)
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    while common and not chosen[common].role == rejected[common].role == ASSISTANT:
        common -= 1
    if not common:
        raise Bad(
            "no common prompt", "the chosen and the rejected dialogue begin differently; they need one prompt"
        )
    return chosen[:common], chosen[common:], rejected[common:]
