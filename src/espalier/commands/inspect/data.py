"""A data file (or a folder, a glob) as it would be trained on: what it is, what smells wrong, and records in colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from espalier.commands.inspect.coloured import ColouredRecord, print_shown, shown, written
from espalier.commands.inspect.page import Section, write_page
from espalier.data.encode.named_templates import NamedTemplate, forms
from espalier.data.encode.templates import SimpleTemplate, Template, choose_template
from espalier.data.encode.tokenise import Encoder
from espalier.data.preflight.findings import TRAIN
from espalier.data.preflight.run import Preflight, PreflightReport
from espalier.data.read.rows import parse_row
from espalier.data.read.sources import rows_of
from espalier.data.read.specs import DatasetSpec, parse_specs
from espalier.data.records import KINDS, BadRecord, LeftOut
from espalier.data.store.again import examples, records_at
from espalier.data.store.job import Job
from espalier.data.store.open import ReadSettings, opened
from espalier.data.store.stack import Choice
from espalier.disk.temporary import temporary_folder
from espalier.errors import UserError
from espalier.models import load
from espalier.runs.preflight import show_preflight
from espalier.screen import Screen, json_text
from espalier.trees.draw import draw_tree
from espalier.trees.tree import Tree

_TRIED = ("preference", "ranking", "unpaired", "chat", "text", "prompt")
"""Kinds, the most telling first."""
_FIRST_ROWS = 200
_WHOLE = 1 << 30  # a limit that no record reaches


@dataclass(frozen=True)
class DataQuestion:
    """How to look at data.

    Attributes:
        model: whose tokenizer and template; without it lengths are characters.
        template: the template's name; else the tokenizer's own, or `simple`.
        kind: one of `KINDS`; else the most telling one that the first rows can be.
        cutoff_len: the most tokens of a path; None: nothing is cut.
        overlong: "trim" or "drop": what happens to longer ones.
        limit: how many records to show.
    """

    model: str | None = None
    template: str | None = None
    kind: str | None = None
    cutoff_len: int | None = None
    overlong: str = "trim"
    limit: int = 3


def show_data(what: str, question: DataQuestion, *, as_json: bool, html: Path | None) -> None:
    """Read, tokenise (where a model is named) and show.

    Raises:
        UserError: unreadable data, or an error that a run would stop at.
    """
    if question.cutoff_len is not None and question.model is None:
        raise UserError("--cutoff-len counts tokens, so it needs --model MODEL for the tokenizer.")
    specs = parse_specs(what)
    kind = question.kind or kind_of(specs)
    if kind not in KINDS:
        raise UserError(f"--as {kind}: wanted {', '.join(KINDS)}.")
    console = Screen()
    with temporary_folder() as folder:
        waiting = Screen(stderr=True)
        reading = ReadSettings(Path(folder), skip_bad=True, show=lambda text: waiting.say(text, "dim"))
        result, records = _looked_at(specs, kind, question, reading)
    if html is not None:
        write_page(html, what, [Section("", f"read as {kind}", result, records)])
    if as_json:
        print(json_text({"kind": kind, **result.as_json()}))
        return
    console.say(kind, "bold")
    for record in records:
        print_shown(console, record)
    if question.model is None:
        console.say("--model MODEL counts tokens, with its tokenizer and template", "dim")
    show_preflight(console, "", result, whole=True)


def _looked_at(
    specs: list[DatasetSpec], kind: str, question: DataQuestion, reading: ReadSettings
) -> tuple[PreflightReport, list[ColouredRecord]]:
    """The preflight of everything, and the records to show; in flat memory, through a store of its own."""
    encoder: Encoder | None = None
    draw: Callable[[Tree], str] = lambda tree: ""  # noqa: E731
    if question.model is not None:
        tokenizer = load.load_tokenizer(question.model)
        template = choose_template(tokenizer, question.template or "auto")
        encoder = Encoder(tokenizer, template, question.cutoff_len or _WHOLE, question.overlong)
        draw = lambda tree: draw_tree(tree, lambda ids: str(tokenizer.decode(list(ids))))  # noqa: E731
    limit = None if encoder is None else encoder.cutoff_len
    job = Job(kind, encoder, max_prompt_length=limit, stop=encoder.stop if encoder else ())
    _, _, loaded = opened(specs, job, reading)
    choice: Choice = loaded.records  # type: ignore[assignment]
    preflight = Preflight(question.cutoff_len, draw)
    preflight.read("dataset", loaded)
    preflight.part(TRAIN, choice)
    if encoder is None:
        plain = bare_template(question.template or "simple")
        first = records_at(specs, job, reading, choice, range(min(question.limit, len(choice))))
        return preflight.report(), [written(record, plain) for record in first]
    picked = examples(specs, job, reading, choice, preflight.account, question.limit)
    return preflight.report(), [shown(record, encoder) for record in picked]


def kind_of(specs: list[DatasetSpec]) -> str:
    """The most telling kind that most of the first rows can be read as.

    Raises:
        UserError: none; with what was wrong with the rows as chats.
    """
    first = [(spec, row) for spec in specs for row in islice(rows_of(spec, {}), _FIRST_ROWS)]
    reasons: dict[str, str] = {}
    good: Counter[str] = Counter()
    for kind in _TRIED:
        for spec, (place, row, _) in first:
            form = None if spec.format == "lines" else spec.format
            parsed = row if isinstance(row, BadRecord) else parse_row(row, place, kind, format=form)
            if isinstance(parsed, BadRecord):
                reasons.setdefault(kind, str(parsed))
            elif not isinstance(parsed, LeftOut):
                good[kind] += 1
        if 2 * good[kind] > len(first):
            return kind
    if good:
        return good.most_common(1)[0][0]
    raise UserError(
        reasons.get(
            "chat", f"{', '.join(spec.path for spec in specs)}: no record in it; wanted at least one."
        )
    )


def bare_template(name: str) -> Template:
    """A template without a tokenizer; `</s>` stands for the end token where the template names none.

    Raises:
        UserError: there is no such template, or it is a tokenizer's own.
    """
    if name == "simple":
        return SimpleTemplate("</s>")
    if name in forms():
        return NamedTemplate(forms()[name], forms()[name].end or "</s>")
    if name in ("auto", "tokenizer"):
        raise UserError(f"--template {name} is the model's own; name it with --model MODEL.")
    raise UserError(f"--template {name}: known are simple, {', '.join(forms())}.")
