"""Records as rows of a file, and rows of any format as what a stage wants: chats, pairs, documents, prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from espalier.corpora.made import CorpusRecord, Omission, Outcomes
from espalier.corpora.prepare.reading import as_line
from espalier.data.read.formats import own_kind
from espalier.data.read.messages import Bad
from espalier.data.read.rows import parse_row
from espalier.data.records import ASSISTANT, Answer, BadRecord, LeftOut, Messages, Record
from espalier.errors import UserError

SHAPES = ("own", "chat", "turns", "preference", "text", "prompt")
"""What `shaped` makes; "own" is what the corpus itself gives."""

Turns = list[dict[str, Any]]


def row_of(record: Record) -> dict[str, Any]:
    """A chat, a preference or a prompt as a row that `formats` reads back.

    >>> from espalier.data.records import Message
    >>> row_of(Record.chat((Message("user", "2+3=?"), Message("assistant", "5"))))["messages"][1]
    {'role': 'assistant', 'content': '5'}
    """
    assert record.kind in ("chat", "prompt", "preference"), record
    others = {name: value for name in ("tools", "prefix", "reference") if (value := getattr(record, name))}
    if record.kind == "chat":
        return {"messages": _turns(record.messages), **others}
    names = ("chosen", "rejected") if record.answers else ()
    answers = {name: _turns(answer.messages) for name, answer in zip(names, record.answers, strict=True)}
    return {"prompt": _turns(record.prompt), **answers, **others}


def _turns(messages: Messages) -> Turns:
    return [turn.as_turn() for turn in messages]


def left_out(outcome: BadRecord | LeftOut, row: dict[str, Any]) -> Omission:
    """A row that became no record, with the reader's own cause and reason."""
    reason = outcome.reason if isinstance(outcome, BadRecord) else ""
    return Omission(outcome.source, outcome.cause, as_line(row), reason)


def shaped(found: Outcomes, shape: str) -> Outcomes:
    """Rows of any format (see `formats`) in another shape; what has none there is an `Omission`.

    chat: the best answer; of a ranking, where it scores above 0. turns: a chat for each of its answers, which is learned
    at its end, what stands before it only read. preference: pairs, see `pairs`. text: a document, or
    prompt, prefix and best answer as one. prompt: without answers. Raises `UserError` where there are no pairs at all.
    """
    assert shape in SHAPES, shape
    if shape == "own":
        yield from found
        return
    made = False
    single = ""
    for thing in found:
        outcomes = [thing] if isinstance(thing, Omission) else _shaped(thing, shape)
        for outcome in outcomes:
            made = made or isinstance(outcome, CorpusRecord)
            if isinstance(outcome, Omission) and outcome.cause == "no pair":
                single = single or outcome.source
            yield outcome
    if single and not made:
        raise UserError(
            f"{single}: --as preference: this corpus has one answer to a question and so no pairs; use --as chat"
        )


def _shaped(thing: CorpusRecord, shape: str) -> Iterator[CorpusRecord | Omission]:
    try:
        kind = own_kind(thing.row)
    except Bad as bad:
        yield Omission(thing.source, bad.cause, as_line(thing.row), bad.reason)
        return
    wanted = "chat" if shape == "turns" or (shape == "text" and kind != "text") else shape
    outcome = parse_row(thing.row, thing.source, wanted)
    if isinstance(outcome, (BadRecord, LeftOut)):
        if kind == "ranking" and isinstance(outcome, LeftOut):
            yield Omission(thing.source, f"no {shape}: {_WHY[wanted]}", thing.key)
        else:
            yield left_out(outcome, thing.row)
        return
    rows = list(_rows(outcome, thing.row, shape))
    for row in rows:
        yield replace(thing, row=row)
    for cause in (*outcome.notes, *(() if rows else ("no turns: each of its answers is only read",))):
        yield Omission(thing.source, cause, thing.key)


_WHY = {"chat": "no answer scores above 0", "preference": "no answer is better than another"}
"""What a ranking lacks."""


def _rows(record: Record, row: dict[str, Any], shape: str) -> Iterator[dict[str, Any]]:
    """A record that was read as `shape` wants it, as the rows to be written."""
    if record.kind == "text":
        yield {"text": record.text}
    elif shape == "turns":
        yield from map(row_of, one_answer_each(record))
    elif shape == "text":
        yield {"text": "\n".join(record.texts)}
    elif record.kind == "ranking":
        for better, worse in pairs(record.answers):
            yield row_of(
                Record.preference(record.prompt, better.messages, worse.messages, tools=record.tools)
            )
    elif shape == "prompt" and [turn.content for turn in record.prompt] == [row.get("prompt")]:
        yield {**row_of(record), "prompt": row["prompt"]}
    else:
        yield row_of(record)


def one_answer_each(chat: Record) -> Iterator[Record]:
    """A chat for each answer of a chat that is learned, with all that stands before it, which is only read.

    So a template that cuts thoughts out of earlier turns can be trained on all answers.

    >>> from espalier.data.records import Message
    >>> said = [
    ...     Message("user", "q"),
    ...     Message("assistant", "a"),
    ...     Message("user", "r"),
    ...     Message("assistant", "b"),
    ... ]
    >>> [
    ...     [turn.content for turn in one.messages if turn.trained]
    ...     for one in one_answer_each(Record.chat(tuple(said)))
    ... ]
    [['q', 'a'], ['q', 'r', 'b']]
    """
    turns = chat.messages
    for at, turn in enumerate(turns):
        if turn.role == ASSISTANT and turn.trained:
            before = tuple(replace(one, trained=one.role != ASSISTANT) for one in turns[:at])
            yield Record.chat((*before, turn), chat.source, chat.tools)


def pairs(answers: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    """(better, worse) of answers, best first, walking down: each against the last one that is strictly better.

    So n answers give at most n - 1 pairs, and answers with equal scores never meet.

    >>> from espalier.data.records import Message
    >>> scores = {"a0": 1, "a1": 0, "a2": 0, "a3": -1, "a4": -1}
    >>> found = pairs([Answer((Message("assistant", text),), score) for text, score in scores.items()])
    >>> [(better.messages[0].content, worse.messages[0].content) for better, worse in found]
    [('a0', 'a1'), ('a0', 'a2'), ('a2', 'a3'), ('a2', 'a4')]
    """
    better_and_worse = []
    better = None
    for above, below in pairwise(answers):
        if above.score > below.score:  # type: ignore[operator]
            better = above
        if better is not None and better.messages != below.messages:
            better_and_worse.append((better, below))
    return better_and_worse
