"""A run that is done already, known without torch: its options, and all files that it reads and has written, lie as they
lay when it ended.

Whoever is in doubt says nothing here, and `espalier.runs.earlier` compares contents instead of sizes and times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from espalier import config
from espalier.config.options import DataOptions, RunOptions
from espalier.data.read.sources import files_of
from espalier.data.read.specs import parse_specs
from espalier.disk.reading import object_or_nothing
from espalier.disk.writing import write_json
from espalier.errors import UserError
from espalier.stages.declared import declared

NOTE = ".finished.json"
KNOWN = ("pretrain", "sft", "reward", "dpo", "kto")
"""Stages of which every file that they read is named by an option; rewards may run code of the user's own."""

_MOST = 10_000
"""Files; a run that has more is looked at by its contents."""

Marks = dict[str, list[int]]


def read_by(stages: Sequence[config.RawConfig]) -> dict[str, Any] | None:
    """What a run of these stages is asked for and what it reads; None where that cannot be told by names and times.

    Args:
        stages: as `espalier.config.split_pipeline` gives them.
    """
    classes = declared()
    marks: Marks = {}
    asked = []
    for stage in stages:
        kind = config.stage_of(stage, classes)
        if kind not in KNOWN:
            return None
        options = config.build(stage, classes[kind], all_classes=classes)
        files = None if options[RunOptions].resume is not True else _files_of(options)
        if files is None:
            return None
        marks |= _marks(files)
        asked.append(dict(config.canonical(stage)[0]))
    versions = {name: version(name) for name in ("espalier-llm", "torch", "transformers", "peft")}
    return {"asked": config.options_hash({"stages": asked}), "versions": versions, "read": marks}


def note(stages: Sequence[config.RawConfig], folder: Path, before: Mapping[str, Any] | None) -> None:
    """Write down that a run has ended, unless what it reads has changed since `before`, when it began."""
    if before is not None and read_by(stages) == before:
        write_json(folder / NOTE, {**before, "written": _written(stages, folder)})


def is_finished(stages: Sequence[config.RawConfig], folder: Path) -> bool:
    """Whether a run of these stages is done, and nothing that it reads or has written was touched since."""
    noted = object_or_nothing(folder / NOTE)
    if not noted:
        return False
    with suppress(UserError, OSError):
        return {**(read_by(stages) or {}), "written": _written(stages, folder)} == noted
    return False


def closing_lines(stages: Sequence[config.RawConfig], folder: Path) -> list[str]:
    """The commands that go on from what a run has made: from the model of the last of the stages that makes one."""
    classes = declared()
    kinds = [(stage, config.stage_of(stage, classes)) for stage in stages]
    made = [
        (str(stage.get("name") or kind), kind) for stage, kind in kinds if kind not in ("evaluate", "sample")
    ]
    if not made:
        return []
    name, kind = made[-1]
    model = folder / name / "model"
    if kind == "reward":
        return [f"rewards by it: espalier ppo FILE.yaml reward_model={model}"]
    return [
        f"talk to it: espalier chat {model}",
        f"examine it: espalier evaluate {model} --tasks TASKS --out {folder / 'exam'}",
    ]


def _files_of(options: config.OptionSet) -> list[Path] | None:
    """Every file behind the options; None where some have another source, such as the hub."""
    found: list[Path] = []
    for group in options:
        for item in fields(group):
            kind, value = item.metadata.get("names"), getattr(group, item.name)
            for name in (value if isinstance(value, list) else [value]) if kind and value else []:
                files = _named(str(kind), name, options)
                if files is None:
                    return None
                found += files
    return found


def _named(kind: str, name: Any, options: config.OptionSet) -> list[Path] | None:
    if isinstance(name, str) and name.startswith("run:"):
        return []  # among what the run has written
    if kind == "data":
        folder = options[DataOptions].dataset_dir
        found = [Path(folder) / "dataset_info.json"] if folder else []
        for spec in parse_specs([name], folder):
            files = files_of(spec) if spec.reader is None else None
            if files is None:
                return None
            found += files
        return found
    if not isinstance(name, str):
        return []  # written out in the options themselves
    path = Path(name).expanduser()
    if path.is_dir() and kind in ("model", "tokenizer"):
        return None if (path / "adapter_config.json").exists() else list(_below(path))
    return [path] if path.is_file() and kind == "file" else None


def _written(stages: Sequence[config.RawConfig], folder: Path) -> Marks:
    names = [str(stage.get("name") or config.canonical(stage)[0]["stage"]) for stage in stages]
    return _marks([folder / "report.html", *(file for name in names for file in _below(folder / name))])


def _below(folder: Path) -> Iterator[Path]:
    return islice((path for path in sorted(folder.rglob("*")) if path.is_file()), _MOST)


def _marks(files: Sequence[Path]) -> Marks:
    """File -> its size, times and inode; the time of change, other than that of writing, nobody can set."""
    found: Marks = {}
    for file in files:
        if file.exists():
            state = file.stat()
            found[str(file.resolve())] = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    return found
