"""Records as rows of a file, and rankings as what another stage wants: chats, pairs, documents, prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from espalier.corpora.made import Omission, Outcomes
from espalier.data.records import ASSISTANT, USER, Messages, Record
from espalier.errors import UserError

SHAPES = ("own", "chat", "preference", "text", "prompt")
"""What `shaped` makes; "own" is what the corpus itself gives."""

Turns = list[dict[str, Any]]


def row_of(record: Record) -> dict[str, Any]:
    """A chat, a preference or a prompt as a row that `formats` reads back.

    >>> from espalier.data.records import Message
    >>> row_of(Record.chat((Message("user", "2+3=?"), Message("assistant", "5"))))["messages"][1]
    {'role': 'assistant', 'content': '5'}
    """
    assert record.kind in ("chat", "prompt", "preference"), record
    tools = {"tools": record.tools} if record.tools else {}
    if record.kind == "chat":
        return {"messages": _turns(record.messages), **tools}
    names = ("chosen", "rejected") if record.answers else ()
    answers = {name: _turns(answer.messages) for name, answer in zip(names, record.answers, strict=True)}
    return {"prompt": _turns(record.prompt), **answers, **tools}


def _turns(messages: Messages) -> Turns:
    return [turn.as_turn() for turn in messages]


def shaped(found: Outcomes, shape: str) -> Outcomes:
    """What a corpus gives in another shape; what has none there is an `Omission`.

    chat: the best answer, where it scores above 0. preference: pairs, see `pairs`. text: prompt, prefix and best
    answer as a document. prompt: without answers. Raises `UserError` where a corpus has no pairs at all.
    """
    assert shape in SHAPES, shape
    if shape == "own":
        yield from found
        return
    for thing in found:
        if isinstance(thing, Omission):
            yield thing
            continue
        rows = list(_SHAPERS[shape](thing.row))
        for row in rows:
            yield replace(thing, row=row)
        if not rows:
            yield Omission(thing.source, f"no {shape}: {_WHY[shape]}", thing.key)


_WHY = {
    "chat": "no answer scores above 0",
    "text": "no answer scores above 0",
    "preference": "no answer is better than another",
    "prompt": "nothing is asked",
}


def pairs(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(better, worse) answers of a ranking, walking down: each answer against the last one that is strictly better.

    So n answers give at most n - 1 pairs, and answers with equal scores never meet.

    >>> scores = [("a0", 1), ("a1", 0), ("a2", 0), ("a3", -1), ("a4", -1)]
    >>> pairs({"answers": [{"answer": text, "score": score} for text, score in scores]})
    [('a0', 'a1'), ('a0', 'a2'), ('a2', 'a3'), ('a2', 'a4')]
    """
    better_and_worse = []
    better = None
    for above, below in zip(row["answers"], row["answers"][1:], strict=False):
        if above["score"] > below["score"]:
            better = above["answer"]
        if better is not None and better != below["answer"]:
            better_and_worse.append((better, below["answer"]))
    return better_and_worse


def _chat(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "messages" in row:
        yield row
    elif "chosen" in row:
        yield {"messages": [*row["prompt"], *row["chosen"]]}
    elif "answers" in row and row["answers"][0]["score"] > 0:
        yield {"messages": [*_asked(row), _answer(row, row["answers"][0]["answer"])]}


def _preference(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "chosen" in row:
        yield row
    elif "answers" not in row:
        raise UserError(
            "--as preference: this corpus has one answer to a question and so no pairs; use --as chat"
        )
    else:
        for better, worse in pairs(row):
            yield {"prompt": _asked(row), "chosen": [_answer(row, better)], "rejected": [_answer(row, worse)]}


def _text(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for chat in _chat(row):
        yield {"text": "\n".join(turn.get("prefix", "") + turn["content"] for turn in chat["messages"])}


def _prompt(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "messages" in row:
        turns = row["messages"]
        last = max((place for place, turn in enumerate(turns) if turn["role"] == USER), default=-1)
        if last >= 0:
            yield {"prompt": turns[: last + 1]}
    elif "answers" in row:
        yield {"prompt": row["prompt"], "prefix": row["prefix"]}
    else:
        yield {"prompt": row["prompt"]}


_SHAPERS = {"chat": _chat, "preference": _preference, "text": _text, "prompt": _prompt}


def _asked(row: dict[str, Any]) -> Turns:
    return [{"role": USER, "content": row["prompt"]}]


def _answer(row: dict[str, Any], text: str) -> dict[str, str]:
    return {"role": ASSISTANT, "content": text, **({"prefix": row["prefix"]} if row["prefix"] else {})}
