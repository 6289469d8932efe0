"""All exams of all models in one table: tasks by models and numbers of solved examples, the best of each task marked."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from espalier.report.exam_rows import metrics_of, shots_shown
from espalier.report.plots import number
from espalier.report.read import Row, mapping

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "nats_per_token", "rejected_score")
NOTHING = "–"


@dataclass(frozen=True)
class Score:
    """One model's number in one task.

    Attributes:
        value, stderr: of the task's first metric; a single question has no error.
        n: questions.
        chance: what guessing reaches; None where nothing is guessed.
        shots: solved examples, as `shots_shown` shows them.
        best: whether no other of its task is better, and some other is worse.
    """

    value: float
    stderr: float | None
    n: float | None
    chance: float | None
    shots: str
    best: bool = False

    def __str__(self) -> str:
        error = "" if self.stderr is None else f"±{self.stderr:.3f}"
        return f"{self.value:.3f}{error}" + f" ({self.shots} shots)" * ("→" in self.shots)


@dataclass(frozen=True)
class TaskScores:
    """A task's line; `scores` has one for each column of the table, None where that was not asked."""

    task: str
    type: str
    method: str
    metric: str
    scores: tuple[Score | None, ...]

    def facts(self) -> list[str]:
        """What stands before the scores; several numbers of questions where the models were asked so many."""
        found = [score for score in self.scores if score is not None]
        n = dict.fromkeys(f"{score.n:g}" for score in found if score.n is not None)
        chances = dict.fromkeys(f"{score.chance:.3f}" for score in found if score.chance is not None)
        joined = [", ".join(values) or NOTHING for values in (n, chances)]
        return [self.task, self.type, self.method, self.metric, *joined]


FACTS = ("task", "type", "method", "metric", "n", "chance")


def shots_named(shots: float) -> str:
    """How a number of solved examples is called: zero-shot, 3-shot."""
    return "zero-shot" if shots == 0 else f"{shots:g}-shot"


@dataclass(frozen=True)
class ExamTable:
    """The whole: columns are (model, number of solved examples), zero-shot ones first."""

    columns: tuple[tuple[str, float], ...]
    tasks: tuple[TaskScores, ...]

    @property
    def headers(self) -> list[str]:
        return [f"{model}, {shots_named(shots)}" for model, shots in self.columns]


def exam_table(exams: list[tuple[str, Row]]) -> ExamTable:
    """The table of (folder, what its results.json holds)."""
    cells: dict[tuple[str, str], dict[tuple[str, float], Score]] = {}
    facts: dict[tuple[str, str], tuple[str, str]] = {}
    for label, (_, results) in zip(_labels(exams), exams, strict=True):
        for name, given in mapping(results.get("tasks")).items():
            row = mapping(given)
            metric, shots = next(iter(metrics_of(row)), None), number(row.get("shots")) or 0.0
            if metric is None:
                continue
            key = name.removesuffix(f"_{shots:g}shot"), metric
            if (label, shots) in cells.get(
                key, {}
            ):  # asked twice, in calls with one and with several numbers
                key = name, metric
            about = str(row.get("type") or NOTHING), str(row.get("method") or NOTHING)
            facts.setdefault(key, about)
            cells.setdefault(key, {})[label, shots] = _score(row, metric)
    order = {label: place for place, label in enumerate(_labels(exams))}
    columns = {column for mine in cells.values() for column in mine}
    ordered = tuple(sorted(columns, key=lambda column: (column[1], order[column[0]])))
    tasks = [
        TaskScores(task, *facts[task, metric], metric, tuple(map(_marked(mine, metric).get, ordered)))
        for (task, metric), mine in cells.items()
    ]
    return ExamTable(ordered, tuple(tasks))


def _labels(exams: list[tuple[str, Row]]) -> list[str]:
    """A short name of each model; with its folder where several have the same."""
    short = ["/".join(Path(str(results.get("model", ""))).parts[-2:]) for _, results in exams]
    return [
        name if short.count(name) == 1 else f"{name} ({folder})"
        for name, (folder, _) in zip(short, exams, strict=True)
    ]


def _score(row: Row, metric: str) -> Score:
    metrics = mapping(row.get("metrics"))
    value = number(metrics[metric])
    assert value is not None, metric
    guessed = metric in ("accuracy", "macro_accuracy")
    return Score(
        value,
        number(metrics.get(f"{metric}_stderr")),
        number(row.get("n")),
        number(row.get("chance")) if guessed else None,
        shots_shown(row),
    )


def _marked(scores: dict[tuple[str, float], Score], metric: str) -> dict[tuple[str, float], Score]:
    values = [score.value for score in scores.values()]
    best = (min if metric.endswith(LOWER_IS_BETTER) else max)(values)
    several = any(value != best for value in values)
    return {column: replace(score, best=several and score.value == best) for column, score in scores.items()}


def as_markdown(table: ExamTable) -> str:
    """The table in markdown, the best of each task in bold."""
    lines = [[*FACTS, *table.headers], ["---"] * (len(FACTS) + len(table.columns))]
    for task in table.tasks:
        cells = [NOTHING if s is None else f"**{s}**" if s.best else str(s) for s in task.scores]
        lines.append([*task.facts(), *cells])
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def as_csv(table: ExamTable) -> str:
    """A line a task, model and number of solved examples; numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["task", "type", "method", "metric", "model", "shots", "value", "stderr", "n", "chance", "best"]
    )
    writer.writerows(_csv_rows(table))
    return text.getvalue()


def _csv_rows(table: ExamTable) -> Iterator[list[object]]:
    for task in table.tasks:
        for (model, _), s in zip(table.columns, task.scores, strict=True):
            if s is not None:
                about = [task.task, task.type, task.method, task.metric, model, s.shots]
                yield [*about, s.value, s.stderr, s.n if s.n is None else f"{s.n:g}", s.chance, int(s.best)]
