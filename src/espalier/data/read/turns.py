"""A user's turns -> `Message`s, checked: OpenAI's and ShareGPT's lists, and what other projects write in them.

Every function raises `Bad` with a short cause and a reason that names the cure; none repairs anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from espalier.data.read.messages import Bad, as_label, as_text, shown
from espalier.data.read.tool_calls import as_calls, calls_in_text, python_call
from espalier.data.records import ASSISTANT, SYSTEM, TOOL, USER, Message, Messages

_ROLE_NAMES = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
    "function_call": ASSISTANT,
    "tool_call": ASSISTANT,
    "tool": TOOL,
    "function": TOOL,
    "observation": TOOL,
    "ipython": TOOL,
    "tool_response": TOOL,
}
_CALLING = ("function_call", "tool_call")
"""Roles of turns that are nothing but calls of tools, as JSON text."""
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_TRAINED = ("weight", "loss", "train", "training")
"""Keys by which other projects say that a turn is learned, or only read."""


def as_messages(value: Any, what: str) -> Messages:
    """A list of turns, or a single turn, or either as JSON text; OpenAI's or ShareGPT's keys.

    The order of roles is not checked here (see `check_order`). Raises `Bad`.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise Bad("broken JSON", f"{what} looks like JSON text but is broken: {error}") from None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Bad(
            "not messages",
            f"{what} holds {shown(value)}, wanted a list of {{role, content}} or {{from, value}}",
        )
    if not value:
        raise Bad("empty messages", f"{what} is an empty list, wanted at least one turn")
    messages: list[Message] = []
    for number, turn in enumerate(value, start=1):
        _append(messages, _said(turn, f"{what}, turn {number}"), f"{what}, turn {number}")
    return tuple(messages)


def _append(messages: list[Message], said: Iterable[tuple[Message, bool]], what: str) -> None:
    """Adds what one turn says; calls that stand in a turn of their own belong to the assistant's turn before them."""
    for message, joins in said:
        if not (joins and messages and messages[-1].role == ASSISTANT):
            messages.append(message)
            continue
        before = messages.pop()
        if before.trained != message.trained:
            raise Bad(
                "odd weight",
                f"{what} is trained otherwise than the text before it; give both the same weight",
            )
        calls = json.dumps(
            [*json.loads(before.calls or "[]"), *json.loads(message.calls)], ensure_ascii=False
        )
        both = before.calls_as_text and message.calls_as_text
        content = f"{before.content}\n{message.content}" if both else before.content
        messages.append(replace(before, content=content, calls=calls, calls_as_text=both))


def _said(turn: Any, what: str) -> list[tuple[Message, bool]]:
    """What a turn says, each with whether it is calls in a turn of their own."""
    name, content = _speaker(turn, what)
    role = _ROLE_NAMES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Bad("unknown role", f"{what} has the role {name!r}; known are {', '.join(_ROLE_NAMES)}")
    trained = _trained(turn, role, what)
    if role == TOOL and isinstance(turn.get("parameters"), Mapping):  # ChatGLM3's form: a call and its result
        call = as_calls({"name": turn.get("name"), "arguments": turn["parameters"]}, what)
        content = turn.get("observation", content)
        if not isinstance(content, str):
            content = json.dumps(content, ensure_ascii=False)
        result = Message(TOOL, as_text(content, what, may_be_empty=True), name=str(turn["name"]))
        return [(Message(ASSISTANT, "", calls=call, trained=trained), True), (result, False)]
    if isinstance(content, list):
        content = _joined_parts(content, what)
    if role == ASSISTANT:
        return [_assistant(turn, name.lower(), content, trained, what)]
    text = as_text(content, f"{what} ({name})", may_be_empty=role in (SYSTEM, TOOL))
    further = {
        key: as_text(turn.get(key), f"{what}, {key}", may_be_empty=True) for key in ("name", "tool_call_id")
    }
    return [(Message(role, text, name=further["name"], call_id=further["tool_call_id"]), False)]


def _speaker(turn: Any, what: str) -> tuple[Any, Any]:
    """The role and the content of a turn."""
    if not isinstance(turn, Mapping):
        raise Bad("not messages", f"{what} is {shown(turn)}, wanted {{role, content}} or {{from, value}}")
    for role, content in (("role", "content"), ("from", "value")):
        if turn.get(role) is not None:
            return turn[role], turn.get(content)
    raise Bad(
        "not messages", f"{what} has the keys {sorted(turn)}, wanted {{role, content}} or {{from, value}}"
    )


def _assistant(
    turn: Mapping[str, Any], name: str, content: Any, trained: bool, what: str
) -> tuple[Message, bool]:
    """An assistant's turn, and whether it is calls in a turn of their own."""
    called = turn.get("tool_calls") or turn.get("function_call")
    calls = as_calls(called, what) if called else ""
    text = as_text(content, f"{what} ({name})", may_be_empty=bool(calls))
    tool = as_text(turn.get("metadata"), f"{what}, metadata", may_be_empty=True)
    text = f"{tool}\n{text}" if tool else text
    in_python = python_call(text)
    if tool and not in_python:
        raise Bad(
            "broken tool call",
            f"{what} has the metadata {tool!r}, which in ChatGLM3's form is a tool that is called, and its content is no "
            "```python block with tool_call(name=value, …) alone; write it so, or remove metadata",
        )
    twice = bool(calls and in_python) and _named(calls) == _named(
        in_python
    )  # as ChatGLM3's own server has it
    text = "" if twice else text
    in_text = "" if calls else in_python or (calls_in_text(text) if name in _CALLING else "")
    thoughts = [as_text(turn.get(key), f"{what}, {key}", may_be_empty=True) for key in _THOUGHTS]
    message = Message(
        ASSISTANT,
        text,
        as_text(turn.get("prefix"), f"{what}, prefix", may_be_empty=True),
        thoughts=next((thought for thought in thoughts if thought.strip()), ""),
        calls=calls or in_text,
        calls_as_text=bool(in_text),
        name=as_text(turn.get("name"), f"{what}, name", may_be_empty=True),
        trained=trained,
    )
    return message, twice or bool(in_text)


def _named(calls: str) -> list[str]:
    return [call["function"]["name"] for call in json.loads(calls)]


def _trained(turn: Mapping[str, Any], role: str, what: str) -> bool:
    """Whether an assistant's turn is learned, by the keys that say so; all must say the same."""
    said = {}
    for key in _TRAINED:
        value = turn.get(key)
        if value is None:
            continue
        said[key] = as_label(value)
        if said[key] is None:
            raise Bad(
                "odd weight",
                f"{what}: {key!r} is {shown(value)}; wanted 1 or true (learned), 0 or false (read)",
            )
    if len(set(said.values())) > 1:
        raise Bad(
            "odd weight", f"{what}: {' and '.join(map(repr, said))} say different things; keep one of them"
        )
    learned = any(said.values()) or not said
    if said and learned and role != ASSISTANT:
        raise Bad(
            "odd weight",
            f"{what}: {next(iter(said))!r} would train a turn of {role}, but only the assistant's are; remove the key "
            "(`train_on_prompt: true` trains everything)",
        )
    return learned or role != ASSISTANT


def _joined_parts(parts: list[Any], what: str) -> str:
    """OpenAI's list of content parts as one text; only text parts can be trained on."""
    texts = []
    for part in parts:
        if not (isinstance(part, Mapping) and part.get("type") == "text"):
            raise Bad(
                "not text", f"{what} has a part that is no text: {shown(part)}; only text can be trained on"
            )
        texts.append(as_text(part.get("text"), what))
    return "".join(texts)
