"""Dialogues that are no lists of turns -> `Message`s: Alpaca's histories, xtuner's pairs, texts with speakers' marks.

Every function raises `Bad` with a short cause and a reason that names the cure; none repairs anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from espalier.data.read.messages import Bad, as_label, as_text, shown
from espalier.data.read.turns import as_messages
from espalier.data.records import ASSISTANT, SYSTEM, USER, Message, Messages

_MARKS = {"Human": USER, "Assistant": ASSISTANT, "人类": USER, "助手": ASSISTANT}
_MARK = f"({'|'.join(_MARKS)})[:：]"
_HH_TURN = re.compile(rf"\n\n{_MARK}")
_WAITING = re.compile(r"(\s+)(?:Assistant|助手)[:：]\s*$")


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


def as_pairs(value: Any, what: str) -> Messages:
    """xtuner's ``conversation``: a list of {system, input, output}, the system text in the first of them."""
    if not isinstance(value, list) or not value:
        raise Bad("not messages", f"{what} holds {shown(value)}, wanted a list of {{input, output}}")
    if not all(isinstance(pair, Mapping) and "input" in pair for pair in value):
        return as_messages(value, what)
    messages: list[Message] = []
    for number, pair in enumerate(value, start=1):
        place = f"{what}, pair {number}"
        system = as_text(pair.get("system"), f"{place}, system", may_be_empty=True)
        if system:
            messages.append(Message(SYSTEM, system))
        messages.append(Message(USER, as_text(pair["input"], f"{place}, input")))
        if pair.get("output") is not None:
            trained = as_label(pair.get("output_with_loss", True)) is not False
            messages.append(Message(ASSISTANT, as_text(pair["output"], f"{place}, output"), trained=trained))
    return tuple(messages)


def looks_like_hh(value: Any) -> bool:
    """Whether `value` is a dialogue of hh-rlhf: one string of turns, the first of them Human's."""
    begin = _HH_TURN.match(value) if isinstance(value, str) else None
    return begin is not None and _MARKS[begin[1]] == USER


def as_hh_dialogue(value: Any, what: str) -> Messages:
    """A dialogue written as one string, '\\n\\nHuman: …\\n\\nAssistant: …' (Bai et al. 2022, hh-rlhf), or 人类 and 助手."""
    text = as_text(value, what)
    if not looks_like_hh(text):
        raise Bad(
            "not a dialogue",
            f"{what} does not begin with '\\n\\nHuman:'; add a `prompt` column, or name a format",
        )
    return tuple(
        Message(_MARKS[speaker], as_text(said.removeprefix(" "), f"{what}, turn {number} ({speaker})"))
        for number, (speaker, said) in enumerate(_split(_HH_TURN, text), start=1)
    )


def is_waiting(text: str) -> bool:
    """Whether a text begins with a speaker's mark and ends with the assistant's."""
    return re.match(rf"\s*{_MARK}", text) is not None and _WAITING.search(text) is not None


def waiting_dialogue(text: str, what: str) -> Messages | None:
    """A prompt that begins with 'Human:' and ends with 'Assistant:', as its turns; None for any other text.

    rm-static has its prompts so, and DeepSpeed-Chat's own files. Turns begin on a new line where the last mark does.
    The white space about the marks belongs to them.

    >>> [
    ...     turn.content
    ...     for turn in waiting_dialogue("Human: 1+1? Assistant: 2 Human: 2+2? Assistant:", "a prompt") or ()
    ... ]
    ['1+1?', '2', '2+2?']
    """
    end = _WAITING.search(text)
    if end is None or not is_waiting(text):
        return None
    between = r"\n\n" if "\n\n" in end[1] else r"\n" if "\n" in end[1] else r"\s"
    turns = list(_split(re.compile(rf"(?:^\s*|{between}){_MARK}"), text))
    if _MARKS[turns[0][0]] != USER:
        return None
    return tuple(
        Message(_MARKS[speaker], as_text(said.strip(), f"{what}, turn {number} ({speaker})"))
        for number, (speaker, said) in enumerate(turns[:-1], start=1)
    )


def _split(turn: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """(speaker's mark, what is said) of each turn."""
    parts = turn.split(text)
    return list(zip(parts[1::2], parts[2::2], strict=True))
