"""The command `espalier scores`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from espalier.errors import UserError
from espalier.report.exam_table import (
    FACTS,
    NOTHING,
    ExamTable,
    TaskScores,
    as_csv,
    as_markdown,
    exam_table,
    shots_named,
)
from espalier.report.read import read_run
from espalier.screen import Screen, safe


def scores(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER [FOLDER ...]", help="Folders of exams or of runs.")
    ],
    written: Annotated[str, typer.Option("--as", help="table, markdown or csv.")] = "table",
) -> None:
    """All exams below some folders in one table: tasks by models and numbers of solved examples."""
    if written not in ("table", "markdown", "csv"):
        raise UserError(f"--as {written}: wanted table, markdown or csv.")
    exams = []
    for folder in folders:
        run = read_run(folder)
        exams += [(str(folder / name), results) for name, results in run.exams]
        for note in run.notes:
            Screen(stderr=True).say(f"note: {note}")
    table = exam_table(exams)
    if not table.tasks:
        raise UserError(
            f"{', '.join(map(str, folders))}: no exam with a number; give the --out of `espalier evaluate`, or a run."
        )
    if written == "table":
        for task in table.tasks:
            Screen().print(_terminal(table, task))
    else:
        print(safe(as_markdown(table) if written == "markdown" else as_csv(table)), end="")


def _terminal(table: ExamTable, task: TaskScores) -> Table:
    """One task: a line a model, a column a number of solved examples, which leaves room in eighty columns."""
    asked = [(column, score) for column, score in zip(table.columns, task.scores, strict=True) if score]
    shots = list(dict.fromkeys(count for (_, count), _ in asked))
    facts = " · ".join(f"{name} {fact}" for name, fact in zip(FACTS[1:], task.facts()[1:], strict=True))
    made = Table(title=safe(f"{task.task}: {facts}"), title_justify="left", title_style="", box=None)
    made.add_column("", overflow="fold")
    for count in shots:
        made.add_column(shots_named(count), justify="right")
    for model in dict.fromkeys(model for (model, _), _ in asked):
        mine = {count: score for (name, count), score in asked if name == model}
        cells = [Text(str(mine.get(count, NOTHING))) for count in shots]
        for count, cell in zip(shots, cells, strict=True):
            cell.stylize("bold" if count in mine and mine[count].best else "")
        made.add_row(safe(model), *cells)
    return made
