"""What is said in a turn, in parts, and whether a text shows them: so that nothing of a conversation is lost on the way."""

from __future__ import annotations

import json
import re
from typing import Any

from espalier.data.records import Message


def parts_of(message: Message) -> list[tuple[str, str]]:
    """What an assistant says, each with what it is: thoughts, text or calls."""
    parts = [("thoughts", message.thoughts)]
    *thoughts, text = (
        re.split("</?think>", message.content) if "</think>" in message.content else [message.content]
    )
    parts += [("thoughts", thought) for thought in thoughts]
    if message.calls_as_text:
        text = ""
    parts.append(("text", text))
    for call in json.loads(message.calls) if message.calls else ():
        function = call["function"]
        parts += [("calls", leaf) for leaf in (function["name"], *_leaves(function["arguments"]))]
    return [(what, part.strip()) for what, part in parts if part.strip()]


def _leaves(value: Any) -> list[str]:
    """The names and the values in the arguments of a call, as text."""
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in (name, *_leaves(inner))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _leaves(inner)]
    return [value if isinstance(value, str) else json.dumps(value)]


def is_shown(part: str, text: str) -> bool:
    return any(written in text for written in ways_to_write(part))


def ways_to_write(text: str) -> tuple[str, ...]:
    """The ways in which a template may write a text: without its outer white space, inside of JSON."""
    text = text.strip()
    return text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]
