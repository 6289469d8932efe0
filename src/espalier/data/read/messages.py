"""A user's turns -> `Message`s, checked: OpenAI and ShareGPT lists, Alpaca histories, hh-rlhf dialogues.

Every function raises `Bad` with a short cause and a reason that names the cure; none repairs anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

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
    "tool": TOOL,
    "function": TOOL,
    "observation": TOOL,
}

_HALF = re.compile("[\ud800-\udfff]")  # JSON can write half of a character; no tokenizer takes it
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


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
    return tuple(_message(turn, f"{what}, turn {number}") for number, turn in enumerate(value, start=1))


def _message(turn: Any, what: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Bad("not messages", f"{what} is {shown(turn)}, wanted {{role, content}} or {{from, value}}")
    if "role" in turn:
        name, content = turn["role"], turn.get("content")
    elif "from" in turn:
        name, content = turn["from"], turn.get("value")
    else:
        raise Bad(
            "not messages", f"{what} has the keys {sorted(turn)}, wanted {{role, content}} or {{from, value}}"
        )
    role = _ROLE_NAMES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Bad("unknown role", f"{what} has the role {name!r}; known are {', '.join(_ROLE_NAMES)}")
    if turn.get("tool_calls") and not content:
        content = _tool_calls(turn["tool_calls"], what)
    if isinstance(content, list):
        content = _joined_parts(content, what)
    prefix = as_text(turn.get("prefix"), f"{what}, prefix", may_be_empty=True) if role == ASSISTANT else ""
    text = as_text(content, f"{what} ({name})", may_be_empty=role in (SYSTEM, TOOL))
    return Message(role, text, prefix)


def _tool_calls(calls: Any, what: str) -> str:
    """OpenAI's structured calls as the JSON text that the assistant writes; one call is one object."""
    written = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or "name" not in function:
            raise Bad("broken tool call", f"{what} has a tool call without a function name: {shown(call)}")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except json.JSONDecodeError as error:
                raise Bad(
                    "broken tool call", f"{what}: the arguments of a tool call are broken JSON: {error}"
                ) from None
        written.append({"name": function["name"], "arguments": arguments})
    return json.dumps(written[0] if len(written) == 1 else written, ensure_ascii=False)


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


def as_history(value: Any) -> Messages:
    """Earlier turns as Alpaca files have them: a list of (question, answer) pairs, or one flat alternating list."""
    if value is None or value == "" or value == []:
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise Bad(
                "broken history", f"column 'history' holds {shown(value)}, wanted a list of pairs"
            ) from None
    if not isinstance(value, list):
        raise Bad(
            "broken history",
            f"column 'history' holds {shown(value)}, wanted a list of [question, answer] pairs",
        )
    if all(isinstance(item, Mapping) for item in value):
        return as_messages(value, "column 'history'")
    if all(isinstance(item, (list, tuple)) and len(item) == 2 for item in value):
        flat = [text for pair in value for text in pair]
    elif all(isinstance(item, str) for item in value) and len(value) % 2 == 0:
        flat = value
    else:
        raise Bad(
            "broken history",
            f"column 'history' holds {shown(value)}, wanted [question, answer] pairs or question, answer, question, … "
            "with an answer to every question",
        )
    roles = (USER, ASSISTANT)
    return tuple(
        Message(roles[i % 2], as_text(text, f"column 'history', turn {i + 1}")) for i, text in enumerate(flat)
    )


def looks_like_hh(value: Any) -> bool:
    """Whether `value` is a dialogue of hh-rlhf: one string of turns, the first of them Human's."""
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def as_hh_dialogue(value: Any, what: str) -> Messages:
    """A dialogue written as one string, '\\n\\nHuman: …\\n\\nAssistant: …' (Bai et al. 2022, hh-rlhf)."""
    text = as_text(value, what)
    if not looks_like_hh(text):
        raise Bad(
            "not a dialogue",
            f"{what} does not begin with '\\n\\nHuman:'; add a `prompt` column, or name a format",
        )
    parts = _HH_TURN.split(text)
    messages = []
    for number, (speaker, content) in enumerate(zip(parts[1::2], parts[2::2], strict=True), start=1):
        role = USER if speaker == "Human" else ASSISTANT
        messages.append(
            Message(role, as_text(content.removeprefix(" "), f"{what}, turn {number} ({speaker})"))
        )
    return tuple(messages)


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
