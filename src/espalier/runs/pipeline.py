"""A list of stages: each starts from what an earlier one has made, and the whole can be stopped and resumed.

A file with `stage:` is one stage; a file with `stages:` is a pipeline. ``run:NAME`` stands for the model
that the stage NAME of this pipeline has written. A stage that is finished under the same options and
inputs is skipped (what an earlier stage has made is an input, by its content); one that was interrupted goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from espalier import config
from espalier.config.options import EngineOptions
from espalier.disk.lock import owned
from espalier.disk.temporary import remove_left
from espalier.engine import files
from espalier.engine.launch import processes_wanted, rank, relaunch
from espalier.report.page import write_report
from espalier.runs import examine, finished, sample
from espalier.runs.catalogue import CLASSES
from espalier.runs.checks import check_startable
from espalier.runs.train import run_stage
from espalier.screen import Screen

EXAM = "evaluate"
ALL_CLASSES: dict[str, tuple[type, ...]] = {**CLASSES, sample.SAMPLE: sample.CLASSES, EXAM: examine.CLASSES}


def run(
    path: str | Path,
    overrides: Sequence[str] = (),
    chosen: config.Chosen = config.Chosen(),
    **changes: Any,
) -> dict[str, Any]:
    """Run a YAML file: one stage, or a pipeline. Returns the (last) summary.

    Args:
        path: of the file.
        overrides: ``key=value`` as on the command line.
        chosen: some steps of a pipeline.
        changes: as overrides, but Python values; they win.

    Raises:
        UserError: anything wrong with the user's input.
    """
    raw = config.load_yaml(path, overrides)
    for key, value in changes.items():
        raw[key] = value
    return run_options(raw, chosen)


def run_options(raw: config.RawConfig, chosen: config.Chosen = config.Chosen()) -> dict[str, Any]:
    """The same from options that are read already."""
    stages, folder = _planned(raw, chosen)
    for stage in stages:  # every mistake of every stage, before the first file is touched
        _check(stage)
    summary: dict[str, Any] = {}
    with _alone(folder):
        if _is_main() and "stages" in raw:
            files.write_text(folder / "config.yaml", _as_yaml(raw))
        before = finished.read_by(stages) if _is_main() else None
        for stage in stages:
            summary = _run_one(_resolved(stage, folder))
            if config.stage_of(stage, ALL_CLASSES) != sample.SAMPLE:  # which has no curves to show
                _report(folder)
        finished.note(stages, folder, before)
    return summary


def _planned(raw: config.RawConfig, chosen: config.Chosen) -> tuple[list[config.RawConfig], Path]:
    """The stages that run, and the run's folder."""
    return config.planned(raw, ALL_CLASSES, chosen)


def _check(stage: config.RawConfig) -> None:
    kind = config.stage_of(stage, ALL_CLASSES)
    options = config.build(stage, ALL_CLASSES[kind], all_classes=ALL_CLASSES)
    if kind != EXAM:
        check_startable(kind, options)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other run writes to the folder meanwhile; one lock for all ranks. What the dead have left goes away."""
    if not _is_main():
        yield
        return
    say = Screen(stderr=True).say
    with owned(folder / ".lock", folder, "choose another output_dir", say):
        remove_left(folder)
        yield


def _run_one(raw: config.RawConfig) -> dict[str, Any]:
    if config.stage_of(raw, ALL_CLASSES) == EXAM:
        return examine.run_exam(raw, ALL_CLASSES) if _is_main() else {}
    if config.stage_of(raw, ALL_CLASSES) == sample.SAMPLE:
        return sample.run_sample(raw, ALL_CLASSES)
    return run_stage(raw)


def wanted_processes(raw: config.RawConfig, chosen: config.Chosen = config.Chosen()) -> int:
    """How many processes the options of a file ask for; errors in it are found here first."""
    wanted = 1
    for stage in _planned(raw, chosen)[0]:
        kind = config.stage_of(stage, ALL_CLASSES)
        options = config.build(stage, ALL_CLASSES[kind], all_classes=ALL_CLASSES)
        if EngineOptions in options:
            engine = options[EngineOptions]
            wanted = max(wanted, processes_wanted(engine.strategy, engine.num_processes))
    return wanted


def run_on_all(
    path: str,
    overrides: Sequence[str],
    flags: Sequence[str] = (),
    chosen: config.Chosen = config.Chosen(),
) -> int:
    """`run` in as many processes as the file asks for; returns the exit code.

    Args:
        path: of the file.
        overrides: ``key=value`` as on the command line.
        flags: of the command itself, such as ``-v``, for the processes that are started.
        chosen: some steps of a pipeline.
    """
    raw = config.load_yaml(path, overrides)
    processes = wanted_processes(raw, chosen)
    if processes > 1:
        return relaunch([*flags, "run", path, *overrides, *chosen.words()], processes)
    run(path, overrides, chosen)
    if _is_main():
        for line in finished.closing_lines(*_planned(raw, chosen)):
            Screen(stderr=True).say(line)
    return 0


def _resolved(stage: config.RawConfig, folder: Path) -> config.RawConfig:
    """``run:NAME`` as the path of the model, ``run:NAME/critic`` as that of another folder beside it."""
    return config.RawConfig(
        {k: config.located(v, folder) for k, v in stage.items()}, stage.places, stage.written
    )


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
    return rank() == 0
