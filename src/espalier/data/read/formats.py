"""Rows as users have them on disk -> records.

A format is known by its columns, or named by the user. Each parser reads one family of columns into `Parts`
(a prompt and what follows it); `_record` makes of the parts the kind of record that the stage wants, so a
preference row also serves as chat (its chosen answer) or as a prompt. A row that is no record comes back as a
`BadRecord`, a sound row that teaches nothing as `LeftOut`; nothing is repaired, stripped or dropped silently.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping

from espalier.data.read import parts as layouts
from espalier.data.read.messages import Bad, as_text, check_order, looks_like_hh, shown
from espalier.data.read.parts import (
    CHOSEN,
    QUESTION,
    REJECTED,
    WANTED,
    Parts,
    Row,
    as_label,
    columns_of,
    first_of,
    missing,
)
from espalier.data.records import (
    ASSISTANT,
    KINDS,
    BadRecord,
    Chat,
    LeftOut,
    Preference,
    Prompt,
    Ranking,
    Record,
    Text,
    Unpaired,
)

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
    the user's file ({"prompt": "question_text"}). Kind "preference" gives a `Ranking` for a row with ranked
    answers; kind "ranking" always gives a `Ranking` (a pair scores 1 and 0). `formats` counts the name of the format
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
        parts = FORMATS[name](row, kind)
        return _record(parts, row, kind, source)
    except Bad as bad:
        return BadRecord(source, bad.cause, bad.reason)


def detect(row: Row, kind: str) -> str:
    """The name of the row's format by its columns. Raises `Bad` when there is none that can serve `kind`."""
    if kind == "text":
        if "text" in row or "content" in row:
            return "text"
        raise missing(row, kind)
    if isinstance(row.get("answers"), list):
        return "ranking"
    if first_of(row, CHOSEN) and first_of(row, REJECTED):
        plain = not any(name in row for name in (*QUESTION, "instruction", "conversations"))
        return "hh" if plain and looks_like_hh(row[first_of(row, CHOSEN) or ""]) else "preference"
    if "label" in row and (kind == "unpaired" or as_label(row["label"]) is not None):
        return "kto"
    for column, name in (("messages", "openai"), ("conversations", "sharegpt"), ("instruction", "alpaca")):
        if column in row:
            return name
    if first_of(row, QUESTION) or ("input" in row and "target" in row):
        return "prompt_completion"
    raise missing(row, kind)


def _parse_kto(row: Row, kind: str) -> Parts:
    if "label" not in row:
        raise missing(row, "unpaired")
    label = as_label(row["label"])
    if label is None:
        raise Bad("broken label", f"column 'label' holds {shown(row['label'])}, wanted true or false")
    name = detect({key: value for key, value in row.items() if key != "label"}, "chat")
    parts = FORMATS[name](row, kind)
    return Parts(prompt=parts.prompt, answer=parts.answer, label=label)


FORMATS: dict[str, Callable[[Row, str], Parts]] = {
    "text": layouts.parse_text,
    "openai": layouts.parse_openai,
    "sharegpt": layouts.parse_sharegpt,
    "alpaca": layouts.parse_alpaca,
    "prompt_completion": layouts.parse_prompt_completion,
    "hh": layouts.parse_hh,
    "preference": layouts.parse_preference,
    "ranking": layouts.parse_ranking,
    "kto": _parse_kto,
}


def _record(parts: Parts, row: Row, kind: str, source: str) -> Record | LeftOut:
    """The parts of a row as a record of `kind`; a better answer serves where one answer is wanted."""
    if kind == "text":
        if parts.text is None:
            raise missing(row, kind)
        return Text(parts.text, source)
    if parts.text is not None:
        raise missing(row, kind)
    tools = _tools(row)
    check_order(parts.prompt, "the prompt", ends_with="prompt")
    if kind == "prompt":
        return Prompt(parts.prompt, _reference(row), source, tools, parts.prefix)
    if kind == "chat" and parts.label is False:
        return LeftOut(source, "label is false: no answer to imitate")
    if kind in ("chat", "unpaired"):
        answer = parts.answer
        if kind == "chat" and parts.pair:
            answer = parts.pair[0]
        if kind == "chat" and parts.ranked:
            answer = parts.ranked[0][0]
        if not answer:
            raise Bad(
                "no answer", f"there is no answer in the columns {columns_of(row)}; wanted {WANTED[kind]}"
            )
        check_order((*parts.prompt, *answer), "the conversation", ends_with=ASSISTANT)
        if kind == "chat":
            return Chat((*parts.prompt, *answer), source, tools)
        if parts.label is None:
            raise missing(row, kind)
        return Unpaired(parts.prompt, answer, parts.label, source, tools)
    if parts.pair:
        chosen, rejected = parts.pair
        for answer in parts.pair:
            check_order((*parts.prompt, *answer), "the pair", ends_with=ASSISTANT)
        if chosen == rejected:
            return LeftOut(source, "chosen equals rejected")
        if kind == "ranking":
            return Ranking(parts.prompt, ((chosen, 1.0), (rejected, 0.0)), source, tools)
        return Preference(parts.prompt, chosen, rejected, source, tools)
    if parts.ranked:
        if len(parts.ranked) == 1:
            return LeftOut(source, "only one answer, so no pair")
        if parts.ranked[0][1] == parts.ranked[-1][1]:
            return LeftOut(source, "all answers score the same")
        return Ranking(parts.prompt, parts.ranked, source, tools)
    raise Bad("no pair", f"there are no two answers in the columns {columns_of(row)}; wanted {WANTED[kind]}")


def _reference(row: Row) -> str | None:
    name = first_of(row, _REFERENCE)
    value = row[name] if name else None
    verl = row.get("reward_model")
    if name is None and isinstance(verl, Mapping):
        name, value = "reward_model.ground_truth", verl.get("ground_truth")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return None if value is None else as_text(value, f"column {name!r}")


def _tools(row: Row) -> str | None:
    """The functions as JSON text; an empty list or text means none."""
    value = row.get("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise Bad("broken JSON", f"column 'tools' is broken JSON: {error}") from None
    return json.dumps(value, ensure_ascii=False) if value else None


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with our column names, {ours: theirs}; raises `Bad` where it lacks one of them."""
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise Bad("missing column", f"`columns` names {missing[0]!r}, but the record has {columns_of(row)}")
    if not columns:
        return row
    kept = {name: value for name, value in row.items() if name not in columns.values()}
    return {**kept, **{ours: row[theirs] for ours, theirs in columns.items()}}
