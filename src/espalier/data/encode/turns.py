"""Messages as a chat template expects them: dictionaries with OpenAI's keys, calls of tools in the template's own form."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from espalier.data.records import ASSISTANT, TOOL, USER, Message
from espalier.errors import UserError


@dataclass(frozen=True)
class CallForm:
    """How a template wants calls: the content of a turn that is nothing else (None: it has none), and whether arguments
    are JSON text."""

    content: str | None
    as_text: bool


_FORMS = (CallForm(None, False), CallForm("", False), CallForm(None, True), CallForm("", True))

_CALL = '[{"id": "abcdefghi", "type": "function", "function": {"name": "look_up", "arguments": {"word": "oriel"}}}]'
TOOL_OF_CALLING = {
    "name": "other_tool",
    "description": "d",
    "parameters": {"type": "object", "properties": {}},
}
_CALLING = (
    Message(USER, "x"),
    Message(ASSISTANT, "", calls=_CALL),
    Message(TOOL, "z", name="look_up", call_id="abcdefghi"),
    Message(ASSISTANT, "y"),
)
"""A conversation with a call, to see what a template makes of it."""


def found_form(write: Callable[[list[dict[str, Any]]], str]) -> CallForm | None:
    """The form in which a template, as `write`, shows a call as one, its arguments as JSON; None where it has none."""
    for form in _FORMS:
        try:
            text = write([as_turn(message, form) for message in _CALLING])
        except UserError:
            continue
        if "oriel" in text and '\\"oriel' not in text and "look_up" in text:
            return form
    return None


def as_turn(message: Message, form: CallForm | None) -> dict[str, Any]:
    """A message as templates expect it."""
    turn = message.as_turn()
    turn.pop("weight", None)
    turn["content"] = turn.pop("prefix", "") + turn["content"]
    if message.calls and form is not None:
        turn["content"] = turn["content"] or form.content
        for call in turn["tool_calls"] if form.as_text else ():
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return turn


def as_functions(tools: str | None) -> list[Any] | None:
    """JSON text -> functions in OpenAI's wrapping, which chat templates expect."""
    if not tools:
        return None
    loaded = json.loads(tools)
    functions = loaded if isinstance(loaded, list) else [loaded]
    return [
        tool if not isinstance(tool, dict) or "type" in tool else {"type": "function", "function": tool}
        for tool in functions
    ]
