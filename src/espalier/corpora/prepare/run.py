"""One preparation from beginning to end: a corpus or data files -> another shape -> clean -> files and a report."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from espalier.corpora.clean.steps import Cleaning, cleaned
from espalier.corpora.clean.view import View, viewed
from espalier.corpora.made import CorpusRecord, Division, Omission, Outcomes
from espalier.corpora.prepare.corpora import CORPORA
from espalier.corpora.prepare.output import Places, write_prepared
from espalier.corpora.prepare.reading import data_files, rows
from espalier.corpora.prepare.shape import shaped
from espalier.data.store.table import language
from espalier.errors import UserError

TASKS = {
    "clean": "data files of any format, with the cleaning that the options ask for",
    "dedup": "the same, --dedup near unless the options say otherwise",
    "decontaminate": "the same; --exams says against what",
    "split": "the same; --dev says how much of the prompts is held out",
    "stats": "only the numbers of data files, nothing written without --out",
}
"""What may stand in place of a corpus' name."""


@dataclass(frozen=True)
class Preparation:
    """What is prepared.

    Attributes:
        source: a name of `CORPORA` or `TASKS`.
        where: its file or folder.
        shape: of the records that are written.
        limit: no more records than these of the corpus, before cleaning.
        columns: of data files, a column's name here -> its name in the files.
    """

    source: str
    where: Path
    shape: str = "own"
    limit: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def prepare(
    what: Preparation,
    out: Path | None,
    division: Division,
    *,
    cleaning: Cleaning | None = None,
    force: bool = False,
    watch: Callable[[Outcomes], Outcomes] = iter,
) -> dict[str, Any]:
    """Prepares a corpus or data files, writes `out` and its neighbours, returns the report.

    `watch` sees everything go by. `force`: files at `out`
    that were made from something else, or by nobody knows whom, may be overwritten.
    Raises `UserError` for an unknown source, for input that is none, and where nothing comes out.
    """
    source, where = what.source, what.where
    if source not in CORPORA and source not in TASKS:
        known = [*CORPORA, *TASKS]
        near = difflib.get_close_matches(source, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "wanted one of them:"
        corpora = "".join(f"\n  {name}: {one.about} -> {one.gives}" for name, one in CORPORA.items())
        raise UserError(
            f"unknown source {source!r}; {hint}{corpora}\nor, for data files of any format: {', '.join(TASKS)}"
        )
    if what.columns and source in CORPORA:
        raise UserError(
            f"--columns is for data files ({', '.join(TASKS)}); {source} has columns of its own. `prepare clean --as chat` "
            "reads others"
        )
    if not where.exists():
        raise UserError(f"{where}: no such file or folder; give the place where the corpus was unpacked")
    if out is not None:
        Places(out)  # refuses a bad name before the work
        if where.is_dir() and out.resolve().is_relative_to(where.resolve()):
            raise UserError(
                f"--out {out} lies inside {where}, and would be read as input the next time; write it elsewhere"
            )
    cleaning = cleaning or Cleaning()
    if source == "dedup" and cleaning.dedup == "none":
        cleaning = replace(cleaning, dedup="near")
    if source == "decontaminate" and not cleaning.exams:
        raise UserError("decontaminate: --exams names no file or folder of exams to look for in the data")
    read = CORPORA[source].read(where, division) if source in CORPORA else data_rows(where, what.columns)
    if what.limit is not None:
        read = _first(read, what.limit)
    accounts: dict[str, Any] = {}
    if source == "stats":
        read = _languages(read, accounts.setdefault("languages", {}))
    found = watch(cleaned(shaped(read, what.shape), cleaning, division, accounts))
    about = {
        "source": source,
        "input": str(where),
        "seed": division.seed,
        "dev": division.dev,
        "as": what.shape,
        **({"columns": dict(what.columns)} if what.columns else {}),
    }
    return write_prepared(found, out, division, about, accounts, force=force)


def data_rows(where: Path, columns: Mapping[str, str]) -> Outcomes:
    """The rows of data files of any format as they are; what the readers refuse is left out by its cause."""
    for path in data_files(where):
        for found in rows(path, columns):
            if isinstance(found, Omission):
                yield found
                continue
            place, row = found
            view = viewed(row, place)
            yield (
                view
                if isinstance(view, Omission)
                else CorpusRecord(row, view.key, place, group=f"{path.name}: {view.kind}")
            )


def _languages(found: Outcomes, counts: dict[str, int]) -> Outcomes:
    """`found`, its records counted by the script of the first thousand characters."""
    for thing in found:
        if isinstance(thing, CorpusRecord):
            view = viewed(thing.row, thing.source)
            name = language(view.text[:1000]) if isinstance(view, View) else ""
            counts[name or "none"] = counts.get(name or "none", 0) + 1
        yield thing


def _first(found: Outcomes, limit: int) -> Iterator[CorpusRecord | Omission]:
    """Up to the `limit`-th record."""
    left = limit
    for thing in found:
        if isinstance(thing, CorpusRecord):
            if not left:
                return
            left -= 1
        yield thing
