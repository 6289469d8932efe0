"""One row of a user's file -> a record of the kind that a stage wants, whatever its format.

A better answer serves where one answer is wanted, so a preference row is also a chat (its chosen answer) or a prompt.
A row that is no record comes back as a `BadRecord`, a sound row that teaches nothing as `LeftOut`; nothing is repaired,
stripped or dropped silently.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from espalier.data.read.columns import COLUMNS, CONVERSATION, Row, columns_of, first_of, missing
from espalier.data.read.formats import FORMATS, detect
from espalier.data.read.messages import Bad, as_text, check_order, shown
from espalier.data.records import ASSISTANT, KINDS, BadRecord, LeftOut, Record

_REFERENCE = ("reference", "ground_truth", "answer")


def parse_row(
    row: Row,
    source: str,
    kind: str,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    formats: Counter[str] | None = None,
) -> Record | BadRecord | LeftOut:
    """One row as a record of `kind` (one of `KINDS`).

    `format` names one of `FORMATS` instead of detecting it; `columns` maps a column's name here to its name in
    the user's file ({"prompt": "question_text"}). Kind "preference" gives a ranking for a row with ranked
    answers; kind "ranking" always gives a ranking (a pair scores 1 and 0). `formats` counts the name of the format
    that the row is read in.
    """
    assert kind in KINDS, kind
    assert format is None or format in FORMATS, format
    try:
        if not isinstance(row, Mapping):
            raise Bad("not an object", f"the record is {shown(row)}, wanted an object with named columns")
        row = renamed(row, columns or {})
        name = format or detect(row, kind)
        if formats is not None:
            formats[name] += 1
        return _as_kind(FORMATS[name].read(row, kind), row, kind, source)
    except Bad as bad:
        return BadRecord(source, bad.cause, bad.reason)


def _as_kind(record: Record, row: Row, kind: str, source: str) -> Record | LeftOut:
    """What a reader made of a row, as a record of `kind`."""
    if (record.kind == "text") != (kind == "text"):
        raise missing(row, kind)
    if kind == "text":
        return replace(record, source=source)
    tools = _tools(row)
    check_order(record.prompt, "the prompt", ends_with="prompt")
    if kind == "prompt":
        return Record(
            "prompt", record.prompt, (), source, tools, _reference(row), _further(row), record.prefix
        )
    if kind in ("chat", "unpaired"):
        return _single(record, row, kind, source, tools)
    if record.kind == "preference":
        for branch in record.branches:
            check_order(branch, "the pair", ends_with=ASSISTANT)
        chosen, rejected = (answer.messages for answer in record.answers)
        if chosen == rejected:
            return LeftOut(source, "chosen equals rejected")
        if kind == "ranking":
            return Record.ranking(record.prompt, ((chosen, 1.0), (rejected, 0.0)), source, tools)
        return replace(_with_margin(record, row), source=source, tools=tools)
    if record.kind == "ranking":
        if len(record.answers) == 1:
            return LeftOut(source, "only one answer, so no pair")
        if record.answers[0].score == record.answers[-1].score:
            return LeftOut(source, "all answers score the same")
        return replace(record, source=source, tools=tools)
    raise Bad("no pair", f"there are no two answers in the columns {columns_of(row)}; wanted {COLUMNS[kind]}")


def _with_margin(record: Record, row: Row) -> Record:
    """A pair whose row says by how much the chosen answer is better: as scores with that difference."""
    margin = row.get("margin")
    if margin is None:
        return record
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < math.inf:
        raise Bad("broken margin", f"column 'margin' holds {shown(margin)}, wanted a number, at least 0")
    chosen, rejected = record.answers
    return replace(record, answers=(replace(chosen, score=float(margin)), replace(rejected, score=0.0)))


def _single(record: Record, row: Row, kind: str, source: str, tools: str | None) -> Record | LeftOut:
    """A record with one answer; of several a chat takes the best, and nobody has labelled any."""
    several = record.kind in ("preference", "ranking")
    label = record.answers[0].label if record.answers else None
    if kind == "chat" and label is False:
        return LeftOut(source, "label is false: no answer to imitate")
    score = record.answers[0].score if record.answers else None
    if kind == "chat" and score is not None and score <= 0:
        return LeftOut(source, "no answer scores above 0")
    answer = record.answers[0].messages if record.answers and (kind == "chat" or not several) else ()
    if not answer:
        raise Bad("no answer", f"there is no answer in the columns {columns_of(row)}; wanted {COLUMNS[kind]}")
    conversation = (*record.prompt, *answer)
    check_order(conversation, "the conversation", ends_with=ASSISTANT)
    if kind == "chat":
        return replace(Record.chat(conversation, source, tools), notes=record.notes)
    if label is None:
        raise missing(row, kind)
    return Record.unpaired(record.prompt, answer, label, source, tools)


def _reference(row: Row) -> str | None:
    name = first_of(row, _REFERENCE)
    value = row[name] if name else None
    verl = row.get("reward_model")
    if name is None and isinstance(verl, Mapping):
        name, value = "reward_model.ground_truth", verl.get("ground_truth")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return None if value is None else as_text(value, f"column {name!r}")


def _further(row: Row) -> str:
    """The columns that are no part of the conversation, as JSON text."""
    kept = {str(name): value for name, value in row.items() if name not in CONVERSATION and value is not None}
    return json.dumps(kept, default=str) if kept else ""


def _tools(row: Row) -> str | None:
    """The functions as JSON text; an empty list or text means none."""
    value = row.get("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise Bad("broken JSON", f"column 'tools' is broken JSON: {error}") from None
    return as_text(json.dumps(value, ensure_ascii=False), "column 'tools'") if value else None


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with our column names, {ours: theirs}; raises `Bad` where it lacks one of them."""
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise Bad("missing column", f"`columns` names {missing[0]!r}, but the record has {columns_of(row)}")
    if not columns:
        return row
    kept = {name: value for name, value in row.items() if name not in columns.values()}
    return {**kept, **{ours: row[theirs] for ours, theirs in columns.items()}}
