"""Records as stretches of text that are trained, only read, or cut; for a terminal and for a page alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.text import Text as RichText

from espalier.data.encode.encoding import encode_pieces
from espalier.data.encode.templates import Template, prompt_text
from espalier.data.encode.tokenise import Encoder, branches_of, encode_all
from espalier.data.records import Answer, Record
from espalier.screen import Screen, safe
from espalier.trees.tree import Tree

TRAINED, READ, CUT = "trained", "read", "cut"
_COLOURS = {TRAINED: "green", READ: "bright_black", CUT: "red strike"}

_HALF = "\ufffd"  # what a tokenizer decodes a part of a character's bytes to

Span = tuple[str, str]
"""(what becomes of it: trained, read or cut; the text)"""


@dataclass(frozen=True)
class Branch:
    """One path of a record: what it is ("chosen", "score 2", or nothing) and its text."""

    label: str
    spans: list[Span]


@dataclass(frozen=True)
class ColouredRecord:
    """One record as a person should see it."""

    source: str
    branches: list[Branch]
    notes: list[str] = field(default_factory=list)
    """Why it was left out or what of it was cut."""
    tokens: int | None = None
    trained: int | None = None


_MOST = 4000
"""Characters of a branch that are shown; of a longer one the beginning and the end."""


def shown(record: Record, encoder: Encoder) -> ColouredRecord:
    """A record as an encoder trains it; what it cuts is there, marked as cut. Of a long one the two ends."""
    if record.kind == "text" and len(record.text) > 25 * _MOST:
        beginning = _whole(Record.document(record.text[: 25 * _MOST], record.source), encoder)
        note = f"of {len(record.text):,} characters only the first {25 * _MOST:,} are looked at here"
        return _clipped(replace(beginning, notes=[note, *beginning.notes]))
    return _clipped(_whole(record, encoder))


def _clipped(record: ColouredRecord) -> ColouredRecord:
    return replace(record, branches=[replace(b, spans=_ends(b.spans)) for b in record.branches])


def _ends(spans: list[Span]) -> list[Span]:
    """Spans without what stands too far from both ends."""
    total, half = sum(len(text) for _, text in spans), _MOST // 2
    if total <= _MOST:
        return spans
    ends: list[Span] = []
    place = 0
    for kind, text in spans:
        head, tail = half - place, total - half - place
        if head >= len(text) or tail <= 0:
            ends.append((kind, text))
        else:
            if head > 0:
                ends.append((kind, text[:head]))
            if place <= half:
                ends.append((READ, f" [… {total - 2 * half:,} characters …] "))
            if tail < len(text):
                ends.append((kind, text[tail:]))
        place += len(text)
    return ends


def _whole(record: Record, encoder: Encoder) -> ColouredRecord:
    if record.kind == "prompt":
        return _written(record, encoder.template)
    trees, account = encode_all([record], encoder)
    notes = list(account)
    if record.kind == "text":
        if len(trees) > 1:
            notes.append(f"cut into {len(trees)} pieces of at most cutoff_len tokens; nothing is lost")
        branches = [
            Branch(f"piece {i}" if len(trees) > 1 else "", _spans(*tree.paths()[0], encoder.tokenizer))
            for i, tree in enumerate(trees, start=1)
        ]
        return _counted(record, branches, notes, trees)
    labels = _labels(record)
    if not trees:
        return ColouredRecord(
            record.source,
            [
                Branch(name, [(CUT, "".join(piece.text for piece in pieces))])
                for name, pieces in zip(labels, branches_of(record, encoder), strict=True)
            ],
            notes,
        )
    paths = trees[0].paths()
    if not account:
        branches = [
            Branch(n, _spans(*path, encoder.tokenizer)) for n, path in zip(labels, paths, strict=True)
        ]
        return _counted(record, branches, notes, trees)
    wholes = encode_pieces(encoder.tokenizer, branches_of(record, encoder), bos=encoder.bos)
    branches = [
        Branch(n, _with_cut(*path, whole, encoder.tokenizer))
        for n, path, (whole, _) in zip(labels, paths, wholes, strict=True)
    ]
    return _counted(record, branches, notes, trees)


def written(record: Record, template: Template) -> ColouredRecord:
    """A record as a template writes it, without a tokenizer; a prompt is only read. Of a long one the two ends."""
    return _clipped(_written(record, template))


def _written(record: Record, template: Template) -> ColouredRecord:
    if record.kind == "text":
        return ColouredRecord(record.source, [Branch("", [(TRAINED, record.text)])])
    if record.kind == "prompt":
        text = prompt_text(template, record.messages, tools=record.tools, prefix=record.prefix)
        reference = [Branch("reference", [(READ, record.reference)])] if record.reference else []
        return ColouredRecord(record.source, [Branch("", [(READ, text)]), *reference])
    whole = Encoder(None, template, 1)
    return ColouredRecord(
        record.source,
        [
            Branch(label, [(TRAINED if piece.trained else READ, piece.text) for piece in pieces])
            for label, pieces in zip(_labels(record), branches_of(record, whole), strict=True)
        ],
    )


def print_shown(console: Screen, record: ColouredRecord) -> None:
    counted = f", {record.tokens:,} tokens, {record.trained:,} trained" if record.tokens is not None else ""
    console.say(f"{record.source}{counted}", "bold")
    for note in record.notes:
        console.say(f"  {note}", "yellow")
    for branch in record.branches:
        text = RichText(f"[{branch.label}] " if branch.label else "", style="")
        for kind, span in branch.spans:
            text.append(safe(span), style=_COLOURS[kind])
        console.print(text, soft_wrap=True)


def _counted(
    record: Record, branches: list[Branch], notes: list[str], trees: Sequence[Tree]
) -> ColouredRecord:
    tokens, trained = sum(tree.n_tokens for tree in trees), sum(tree.n_trained for tree in trees)
    return ColouredRecord(record.source, branches, notes, tokens, trained)


def _labels(record: Record) -> list[str]:
    return ["chosen", "rejected"] if record.kind == "preference" else [_label(a) for a in record.answers]


def _label(answer: Answer) -> str:
    if answer.score is not None:
        return f"score {answer.score:g}"
    return "" if answer.label is None else "good" if answer.label else "bad"


def _spans(tokens: Any, trained: Any, tokenizer: Any) -> list[Span]:
    """Neighbours of one kind as one text; a character that a border cuts into bytes stays whole, before it."""
    ids, flags = [int(token) for token in tokens], [bool(flag) for flag in trained]
    spans: list[Span] = []
    start = 0
    while start < len(ids):
        end = next((at for at in range(start, len(ids)) if flags[at] != flags[start]), len(ids))
        ends = range(end, min(end + 4, len(ids) + 1))
        end = next((at for at in ends if not tokenizer.decode(ids[start:at]).endswith(_HALF)), end)
        spans.append((TRAINED if flags[start] else READ, tokenizer.decode(ids[start:end])))
        start = end
    return spans


def _with_cut(tokens: Any, trained: Any, whole: Sequence[int], tokenizer: Any) -> list[Span]:
    """The spans of a shortened path with one stretch of the whole that is missing, where it is one stretch."""
    kept = [int(token) for token in tokens]
    before = next((i for i, (a, b) in enumerate(zip(kept, whole, strict=False)) if a != b), len(kept))
    missing = len(whole) - len(kept)
    if missing <= 0 or kept[before:] != list(whole[before + missing :]):
        return _spans(tokens, trained, tokenizer)
    return [
        *_spans(tokens[:before], trained[:before], tokenizer),
        (CUT, tokenizer.decode(list(whole[before : before + missing]))),
        *_spans(tokens[before:], trained[before:], tokenizer),
    ]
