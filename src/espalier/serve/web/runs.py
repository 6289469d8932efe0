"""Run folders as the page draws them: curves that can be laid over each other, samples and exams."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espalier.disk.reading import object_or_nothing
from espalier.errors import UserError
from espalier.report.exam_table import exam_table
from espalier.report.plots import number
from espalier.report.read import Run, StageRecord, read_run

POINTS = 600
"""Of one curve at most: more than a screen has columns for."""

SAMPLES = 12
"""The newest of a stage."""

DEPTH = 3
"""Folders below the one that is searched."""

NOT_CURVES = ("step", "epoch", "tokens")

Point = tuple[float, float]


@dataclass
class RunShelf:
    """The runs below some folders.

    Attributes:
        folders: where they are looked for.
    """

    folders: Sequence[Path]
    _read: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)

    def listed(self) -> list[dict[str, Any]]:
        """Name, status, stages and time of each run, the newest first."""
        rows = [
            {
                "name": name,
                "status": _status(run),
                "stages": sorted(path.parent.name for path in run.glob("*/summary.json")),
                "newest": max((path.stat().st_mtime for path in _files(run)), default=0.0),
            }
            for name, run in self.found().items()
        ]
        return sorted(rows, key=lambda row: -row["newest"])

    def found(self) -> dict[str, Path]:
        """Folders of runs by their names, which are their places below what is searched."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            for run in _runs_below(folder, DEPTH):
                inside = run.relative_to(folder).as_posix()
                name = run.resolve().name if inside == "." else inside
                found.setdefault(name if name not in found else str(run), run)
        return found

    def shown(self, name: str, known: str = "") -> tuple[str, dict[str, Any] | None]:
        """A run as the page draws it, and the mark of this state of it; None where the mark is `known`.

        Raises:
            UserError: there is no such run, or nothing can be read of it.
        """
        folder = self.found().get(name)
        if folder is None:
            raise UserError(f"there is no run {name!r} here.")
        mark = _mark(folder)
        if mark == known:
            return mark, None
        if self._read.get(name, ("", {}))[0] != mark:
            self._read[name] = mark, run_view(read_run(folder))
        return self._read[name]


def run_view(run: Run) -> dict[str, Any]:
    """A run as JSON: stages with curves and samples, one table of exams, and what could not be read."""
    table = exam_table(run.exams)
    return {
        "status": next((s.status for s in run.stages if s.status != "done"), "done"),
        "notes": run.notes,
        "stages": [_stage_view(stage) for stage in run.stages],
        "exams": {
            "models": table.headers,
            "tasks": [
                {
                    "task": task.task,
                    "metric": task.metric,
                    "scores": [None if s is None else {"text": str(s), "best": s.best} for s in task.scores],
                }
                for task in table.tasks
            ],
        },
        "config": run.config_text,
    }


def _stage_view(stage: StageRecord) -> dict[str, Any]:
    return {
        "name": stage.name,
        "status": stage.status,
        "steps": max(
            (step for row in stage.rows if (step := number(row.get("step"))) is not None), default=0
        ),
        "total": number(stage.summary.get("total_steps")),
        "curves": {name: thinned(points) for name, points in curves(stage.rows).items()},
        "samples": [
            {
                key: _text(row[key])
                for key in ("step", "prompt", "completion", "reference", "reward")
                if key in row
            }
            for row in stage.samples[-SAMPLES:]
        ],
        "warnings": [str(row.get("text", "")) for row in _rows(stage.summary.get("warnings"))],
    }


def _rows(value: Any) -> Iterable[dict[str, Any]]:
    return (row for row in value if isinstance(row, dict)) if isinstance(value, list) else ()


def _text(value: Any) -> Any:
    """Texts and numbers as they are; a list of turns as lines."""
    if isinstance(value, list):
        return "\n".join(
            str(turn.get("content", "")) if isinstance(turn, dict) else str(turn) for turn in value
        )
    return number(value) if isinstance(value, int | float) else str(value)


def curves(rows: Iterable[dict[str, Any]]) -> dict[str, list[Point]]:
    """(step, value) of every number that the rows have, by its name."""
    found: dict[str, list[Point]] = {}
    for row in rows:
        step = number(row.get("step"))
        for name, given in row.items():
            value = number(given)
            if step is not None and value is not None and name not in NOT_CURVES:
                found.setdefault(name, []).append((step, value))
    return found


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most about so many points of a curve: of each stretch the lowest and the highest, so that no spike is lost; and
    the newest.

    >>> thinned([(0, 1.0), (1, 9.0), (2, 2.0), (3, 3.0), (4, 0.0), (5, 3.0)], most=4)
    [(0, 1.0), (1, 9.0), (3, 3.0), (4, 0.0), (5, 3.0)]
    """
    if len(points) <= most:
        return list(points)
    wide = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), wide):
        stretch = points[start : start + wide]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _runs_below(folder: Path, depth: int) -> Iterable[Path]:
    stages = any(folder.glob("*/summary.json")) or any(folder.glob("*/metrics.jsonl"))
    if stages or (folder / "results.json").is_file():
        yield folder
    elif depth > 0:
        for below in sorted(path for path in folder.iterdir() if path.is_dir()):
            if not below.name.startswith("."):
                yield from _runs_below(below, depth - 1)


def _status(run: Path) -> str:
    found = [str(object_or_nothing(path).get("status", "")) for path in sorted(run.glob("*/summary.json"))]
    return next((status for status in found if status and status != "done"), "done")


def _files(run: Path) -> list[Path]:
    names = ("metrics.jsonl", "summary.json", "samples.jsonl", "results.json", "compare.json", "judge.json")
    return [
        path for name in names for path in (*run.glob(name), *run.glob(f"*/{name}"), *run.glob(f"*/*/{name}"))
    ]


def _mark(run: Path) -> str:
    """Changes with each file that is read."""
    stats = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in _files(run)]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
