"""Reads a run folder as far as it is there: config, stages, exams, and notes on what could not be read.

Any file may be missing or cut off in the middle: a run that was interrupted is the one that people ask about. Left
out: everything about how the page looks (`report`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from espalier.errors import UserError

STAGE_FILES = ("metrics.jsonl", "summary.json", "samples.jsonl")

Row = dict[str, Any]


@dataclass
class StageRecord:
    """One stage's folder as read: `rows` of metrics.jsonl, `summary`, `samples`; each empty when its file is missing."""

    name: str
    summary: Row = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)

    @property
    def status(self) -> str:
        return str(self.summary.get("status") or ("unfinished" if self.rows else "waiting"))


@dataclass
class Run:
    """A whole run folder as read. `notes` names what could not be read; `newest` is the time of its newest file."""

    path: Path
    config: Row = field(default_factory=dict)
    config_text: str = ""
    stages: list[StageRecord] = field(default_factory=list)
    exams: list[tuple[str, Row]] = field(default_factory=list)
    comparisons: list[Row] = field(default_factory=list)
    judged: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    newest: float = 0.0


def read_run(path: Path) -> Run:
    """Reads a run folder; stages come in the order of the pipeline, else in the order in which they were written."""
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder. Wanted: the output_dir of a run. Look for a folder with config.yaml."
        )
    run = Run(path)
    if (path / "config.yaml").is_file():
        run.config_text = _text(path / "config.yaml", run)
        try:
            loaded = yaml.safe_load(run.config_text)
        except yaml.YAMLError:
            run.notes.append("config.yaml is not readable YAML; its text is shown as it is.")
            loaded = None
        run.config = loaded if isinstance(loaded, dict) else {}

    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        if any((folder / name).is_file() for name in STAGE_FILES):
            run.stages.append(
                StageRecord(
                    folder.name,
                    _read_json(folder / "summary.json", run),
                    _read_jsonl(folder / "metrics.jsonl", run),
                    _read_jsonl(folder / "samples.jsonl", run),
                )
            )
    for results in sorted(
        [*path.glob("results.json"), *path.glob("*/results.json"), *path.glob("*/*/results.json")]
    ):
        exam = _read_json(results, run)
        name = results.parent.relative_to(path).as_posix()
        run.exams.append((name if name != "." else Path(str(exam.get("model", "exam"))).name, exam))
    for compared in sorted([*path.glob("compare.json"), *path.glob("*/compare.json")]):
        run.comparisons.append(_read_json(compared, run))
    for judged in sorted([*path.glob("judge.json"), *path.glob("*/judge.json")]):
        run.judged.append(_read_json(judged, run))
    if not (run.config_text or run.stages or run.exams):
        raise UserError(
            f"{path}: found no config.yaml, no stage (a folder with metrics.jsonl) and no exam (results.json). "
            "Wanted: the output_dir of a run. Give that folder, or start the run first."
        )

    planned = _planned(run.config)
    known = {stage.name for stage in run.stages} | {name for name, _ in run.exams}
    run.stages += [StageRecord(name) for name in planned if name not in known]

    def place(name: str) -> tuple[int, float]:
        first = next((f for f in STAGE_FILES if (path / name / f).is_file()), "results.json")
        file = path / name / first
        written = file.stat().st_mtime if file.is_file() else math.inf
        return (planned.index(name) if name in planned else len(planned), written)

    run.stages.sort(key=lambda stage: place(stage.name))
    run.exams.sort(key=lambda exam: place(exam[0]))
    return run


def mapping(value: Any) -> Row:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _planned(config: Row) -> list[str]:
    """Names of the stages that the config asks for, in order."""
    stages = config.get("stages")
    entries = stages if isinstance(stages, list) else [config] if config.get("stage") else []
    return [
        str(e.get("name") or e.get("stage"))
        for e in entries
        if isinstance(e, dict) and (e.get("name") or e.get("stage"))
    ]


def _text(path: Path, run: Run) -> str:
    run.newest = max(run.newest, path.stat().st_mtime)
    return path.read_text(encoding="utf-8", errors="replace")


def _read_json(path: Path, run: Run) -> Row:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path, run))
    except json.JSONDecodeError as error:
        run.notes.append(
            f"{path.relative_to(run.path).as_posix()}:{error.lineno} is not readable JSON; left out."
        )
        return {}
    return mapping(value)


def _read_jsonl(path: Path, run: Run) -> list[Row]:
    """The objects of a jsonl file. The last line of a run that was cut off may be half a line: that is no news."""
    if not path.is_file():
        return []
    lines = _text(path, run).split("\n")
    rows, bad = [], []
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            rows.append(value)
        elif place < len(lines):
            bad.append(place)
    if bad:
        where = f"{path.relative_to(run.path).as_posix()}:{bad[0]}"
        run.notes.append(
            f"{where}: {len(bad)} line{'s' if len(bad) > 1 else ''} not readable as JSON; left out."
        )
    return rows
