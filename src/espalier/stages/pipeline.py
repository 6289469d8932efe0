"""A list of stages: each starts from what an earlier one has made, and the whole can be stopped and resumed.

A file with `stage:` is one stage; a file with `stages:` is a pipeline. ``run:NAME`` stands for the model
that the stage NAME of this pipeline has written. A stage that is finished under the same options and
inputs is skipped; one that was interrupted goes on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espalier import config
from espalier.engine import files
from espalier.engine.launch import processes_wanted, relaunch
from espalier.options import EngineOptions
from espalier.report import write_report
from espalier.screen import Screen
from espalier.stages import examine
from espalier.stages.catalogue import CLASSES
from espalier.stages.train import run_stage

EXAM = "evaluate"
ALL_CLASSES: dict[str, tuple[type, ...]] = {**CLASSES, EXAM: examine.CLASSES}


def run(path: str | Path, overrides: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    """Run a YAML file: one stage, or a pipeline. Returns the (last) summary.

    Args:
        path: of the file.
        overrides: ``key=value`` as on the command line.
        changes: the same as Python values; they win.

    Raises:
        UserError: anything wrong with the user's input.
    """
    raw = config.load_yaml(path, overrides)
    for key, value in changes.items():
        raw[key] = value
    return run_options(raw)


def run_options(raw: config.Placed) -> dict[str, Any]:
    """The same from options that are read already."""
    if "stages" not in raw:
        alone = _run_one(raw, "")
        _report(Path(str(config.canonical(raw)[0].get("output_dir", "runs/run"))))
        return alone
    stages = config.split_pipeline(raw, ALL_CLASSES)
    for stage in stages:  # every mistake of every stage, before the first hour is spent
        kind = config.stage_of(stage, ALL_CLASSES)
        config.build(stage, ALL_CLASSES[kind], all_classes=ALL_CLASSES)
    folder = Path(str(stages[0].get("output_dir", "runs/run")))
    if _is_main():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "config.yaml", _as_yaml(raw))
    fingerprints: dict[str, str] = {}
    summary: dict[str, Any] = {}
    for stage in stages:
        used = sorted(set(_references(stage)))
        upstream = config.options_hash({name: fingerprints.get(name, "") for name in used}) if used else ""
        summary = _run_one(_resolved(stage, folder), upstream)
        fingerprints[str(stage["name"])] = str(summary.get("fingerprint", ""))
        _report(folder)
    return summary


def _run_one(raw: config.Placed, upstream: str) -> dict[str, Any]:
    if config.stage_of(raw, ALL_CLASSES) == EXAM:
        return examine.run_exam(raw, ALL_CLASSES) if _is_main() else {}
    return run_stage(raw, upstream=upstream)


def wanted_processes(raw: config.Placed) -> int:
    """How many processes the options of a file ask for; errors in it are found here first."""
    stages = config.split_pipeline(raw, ALL_CLASSES) if "stages" in raw else [raw]
    wanted = 1
    for stage in stages:
        kind = config.stage_of(stage, ALL_CLASSES)
        options = config.build(stage, ALL_CLASSES[kind], all_classes=ALL_CLASSES)
        if EngineOptions in options:
            engine: EngineOptions = options[EngineOptions]
            wanted = max(wanted, processes_wanted(engine.strategy, engine.num_processes))
    return wanted


def run_on_all(path: str, overrides: Sequence[str]) -> int:
    """`run` in as many processes as the file asks for; returns the exit code."""
    processes = wanted_processes(config.load_yaml(path, overrides))
    if processes > 1:
        return relaunch(["run", path, *overrides], processes)
    run(path, overrides)
    return 0


def _resolved(stage: config.Placed, folder: Path) -> config.Placed:
    """``run:NAME`` as the path of the model, ``run:NAME/critic`` as that of another folder beside it."""
    return config.Placed({k: _replaced(v, folder) for k, v in stage.items()}, stage.places, stage.written)


def _replaced(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and value.startswith("run:"):
        name, _, rest = value.removeprefix("run:").partition("/")
        return str(folder / name / (rest or "model"))
    if isinstance(value, Mapping):
        return {k: _replaced(v, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(v, folder) for v in value]
    return value


def _references(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value.removeprefix("run:").split("/")[0]] if value.startswith("run:") else []
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [name for part in parts for name in _references(part)]


def _as_yaml(raw: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(_plain(raw), allow_unicode=True, sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _report(folder: Path) -> None:
    if _is_main() and folder.is_dir():
        page = write_report(folder)
        Screen(stderr=True).say(f"report: {page}", "dim")


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"
