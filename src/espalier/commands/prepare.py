"""The command `espalier prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.commands.arguments import AsJson
from espalier.errors import UserError
from espalier.screen import Screen, json_text

if TYPE_CHECKING:
    from espalier.corpora.made import Outcomes

_SOURCES = (
    "couplets, poetry, poetry-metre, classical, zhidao, baike, weibo, lcsts, instruction-wild, alpaca, belle, hh-rlhf, "
    "rm-static, deepspeed-chat, summarize-from-feedback, webgpt, hc3, zhihu-kol; or, for data files of any format: clean, dedup, decontaminate, split, stats."
)


def prepare(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=_SOURCES)],
    where: Annotated[Path, typer.Argument(metavar="IN", help="The corpus' folder or file.")],
    out: Annotated[
        Path | None, typer.Option(help="FILE.jsonl for train; its neighbours get the rest.")
    ] = None,
    dev: Annotated[float, typer.Option(help="Share of the prompts that train never sees.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of every choice: parts, wrong answers.")] = 42,
    shape: Annotated[
        str,
        typer.Option(
            "--as", help="own, or everything as chat, turns (one record an answer), preference, text, prompt."
        ),
    ] = "own",
    columns: Annotated[
        str, typer.Option(help="Of data files: name here=name there, such as prompt=title,completion=answer.")
    ] = "",
    limit: Annotated[int | None, typer.Option(help="Only so many records of the corpus.")] = None,
    dedup: Annotated[str, typer.Option(help="Copies to take out: none, exact, near.")] = "none",
    near: Annotated[float, typer.Option(help="Similarity from which texts are near copies.")] = 0.8,
    apart: Annotated[
        bool, typer.Option("--apart/--no-apart", help="Take near copies of dev's records out of train.")
    ] = True,
    mask: Annotated[bool, typer.Option("--mask", help="Mask phone, e-mail and identity numbers.")] = False,
    min_chars: Annotated[int, typer.Option(help="Take out shorter records.")] = 0,
    max_chars: Annotated[int | None, typer.Option(help="Take out longer records.")] = None,
    languages: Annotated[str, typer.Option(help="Keep only these, such as zh,en (by script).")] = "",
    max_repetition: Annotated[
        float | None, typer.Option(help="Take out what repeats more of itself, such as 0.5.")
    ] = None,
    exams: Annotated[
        str, typer.Option(help="Exam files or folders to keep out of the data; with commas.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that were made otherwise.")] = False,
    as_json: AsJson = False,
) -> None:
    """Raw corpora into records, and records into cleaner ones, with a report of what was left out and why."""
    from espalier.corpora.clean.steps import Cleaning
    from espalier.corpora.made import Division
    from espalier.corpora.prepare import run
    from espalier.corpora.prepare.output import Places
    from espalier.corpora.prepare.shape import SHAPES

    if shape not in SHAPES:
        raise UserError(f"--as {shape}: wanted {', '.join(SHAPES)}.")
    if not 0 <= dev < 1:
        raise UserError(f"--dev {dev}: wanted a share from 0 to below 1, such as 0.01.")
    if out is None and source != "stats":
        raise UserError("--out is missing: wanted a name for the train part, such as --out train.jsonl.")
    wanted = tuple(name.strip() for name in languages.split(",") if name.strip())
    _check(dedup, near, wanted, max_repetition)
    report = run.prepare(
        run.Preparation(source, where, shape, limit, _columns(columns)),
        out,
        Division(seed, dev if source != "stats" else 0.0),
        cleaning=Cleaning(
            dedup,
            near,
            apart,
            mask,
            min_chars,
            max_chars,
            wanted,
            max_repetition,
            tuple(Path(name.strip()) for name in exams.split(",") if name.strip()),
        ),
        force=force,
        watch=lambda outcomes: _watched(source, outcomes),
    )
    if as_json:
        print(json_text(report))
    else:
        _show(report, Places(out) if out else None)


def _columns(said: str) -> dict[str, str]:
    """{name here: name there}."""
    named = {}
    for pair in filter(None, (part.strip() for part in said.split(","))):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not (ours and equals and theirs) or ours in named:
            raise UserError(
                f"--columns {pair}: wanted NAME_HERE=NAME_THERE, each once, with commas between them."
            )
        named[ours] = theirs
    return named


def _check(dedup: str, near: float, languages: tuple[str, ...], max_repetition: float | None) -> None:
    from espalier.corpora.clean.steps import DEDUP
    from espalier.data.store.table import LANGUAGES

    if dedup not in DEDUP:
        raise UserError(f"--dedup {dedup}: wanted {', '.join(DEDUP)}.")
    if not 0 < near <= 1:
        raise UserError(f"--near {near}: wanted a similarity above 0 and up to 1, such as 0.8.")
    for name in languages:
        if name not in LANGUAGES:
            raise UserError(f"--languages {name}: known are {', '.join(LANGUAGES)}.")
    if max_repetition is not None and not 0 <= max_repetition <= 1:
        raise UserError(f"--max-repetition {max_repetition}: wanted a share from 0 to 1, such as 0.5.")


def _watched(name: str, outcomes: Outcomes) -> Outcomes:
    """`outcomes`, counted on one live line."""
    from espalier.corpora.made import CorpusRecord
    from espalier.engine.progress import ProgressLine

    line = ProgressLine(name, None)
    records = without = 0
    try:
        for thing in outcomes:
            if isinstance(thing, CorpusRecord):
                records += 1
            else:
                without += 1
            if (records + without) % 256 == 0:
                line.move(records, f"records, {without} left out")
            yield thing
    finally:
        line.close()


def _show(report: dict[str, Any], places: Any) -> None:
    from rich.table import Table

    console = Screen()
    table = Table(title=f"{report['source']}: {report['input']}", show_header=False)
    for part, count in report["records"].items():
        path = {"train": places.train, "dev": places.dev}[part] if places else ""
        table.add_row(f"records for {part}", f"{count:,}", str(path))
    for cause, count in report["left_out"].items():
        table.add_row(f"left out: {cause}", f"{count:,}", "")
    console.print(table)
    for cause, first in report["first_left_out"].items():
        console.say(f"{cause}: the first at {first}")
    if places:
        console.say(f"What was left out: {places.left_out}; the report: {places.text}")
