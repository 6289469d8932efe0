"""A run's folder named where a model is wanted: it stands for the model that its last stage has written.

A stage's folder holds a ``summary.json`` and its models; a run's folder holds those of its stages, and of a pipeline
the ``config.yaml`` that lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from espalier.disk.reading import object_or_nothing
from espalier.errors import UserError
from espalier.screen import Screen

_MODEL = "model"
_NO_MODEL = ("evaluate", "sample")
_WEIGHTS = (".safetensors", ".bin", ".pt")
_IS_MODEL = ("config.json", "adapter_config.json")


def show_choice(line: str) -> None:
    """Where a command says which model it has taken."""
    Screen(stderr=True).say(line, "dim")


def find_model(name: str, say: Callable[[str], None] = show_choice) -> str:
    """The model's folder behind a name.

    Args:
        name: a folder or hub id, or the one file of weights beside a config.json; anything but a run's folder and such
            a file is returned as it is.
        say: is given one line about which model was chosen, where one was.

    Raises:
        UserError: the run is not finished, or its model is no longer there.
    """
    folder = Path(name)
    if _is_all_weights(folder):
        say(f"{name}: the folder with its config.json is taken, {folder.parent}")
        return str(folder.parent)
    if not folder.is_dir() or any((folder / file).is_file() for file in _IS_MODEL):
        return name
    stage = folder if _summary(folder) else _last_stage(folder)
    if stage is None:
        return name
    _check_finished(name, stage)
    say(f"{name}: the model of its last stage is taken, {stage / _MODEL}")
    return str(stage / _MODEL)


def check_there(name: str, lead: str = "") -> None:
    """Raises UserError where a model's or tokenizer's name can only be a path, and nothing is there."""
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"{lead}{name}: there is no such folder. Check the path.")


def _is_all_weights(file: Path) -> bool:
    """Whether this is the file with all weights of a model whose config.json lies beside it."""
    if file.suffix not in _WEIGHTS or not file.is_file() or not (file.parent / "config.json").is_file():
        return False
    return [other for other in file.parent.iterdir() if other.suffix in _WEIGHTS] == [file]


def _summary(stage: Path) -> Mapping[str, Any]:
    """What a stage's folder says of its run; {} where it is none."""
    summary = object_or_nothing(stage / "summary.json")
    return summary if "stage" in summary and "status" in summary else {}


def _last_stage(run: Path) -> Path | None:
    """The stage that a run ends with, or the first of a pipeline that is not finished; None where this is no run."""
    begun = {path.parent.name: _summary(path.parent) for path in run.glob("*/summary.json")}
    begun = {name: summary for name, summary in begun.items() if summary}
    listed = _listed(run)
    for name in listed:
        if begun.get(name, {}).get("status") != "done":
            return run / name
    order = {name: at for at, name in enumerate(listed)}
    # Two short stages may have started in one second.
    last = max(
        begun, key=lambda name: (str(begun[name].get("started")), order.get(name, -1), name), default=None
    )
    return None if last is None else run / last


def _listed(run: Path) -> list[str]:
    """The names of a pipeline's training stages in their order; nothing where there was no pipeline."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    stages = config.get("stages") if isinstance(config, dict) else None
    if not isinstance(stages, list):
        return []
    made = [stage for stage in stages if isinstance(stage, dict) and stage.get("stage") not in _NO_MODEL]
    return [str(stage.get("name") or stage.get("stage")) for stage in made]


def _check_finished(name: str, stage: Path) -> None:
    summary = _summary(stage)
    status = summary.get("status")
    if status == "done" and any((stage / _MODEL / file).is_file() for file in _IS_MODEL):
        return
    if status == "done":
        raise UserError(
            f"{name}: the stage {stage.name} is finished, and its model {stage / _MODEL} is no longer there. Run the "
            "same command again to make it anew, or name another model."
        )
    how = (
        f"{status} at step {summary.get('steps')} of {summary.get('total_steps')}" if status else "not begun"
    )
    finished = [
        str(path.parent)
        for path in sorted(stage.parent.glob("*/summary.json"))
        if _summary(path.parent).get("status") == "done"
    ]
    other = f", or name the model of a stage that is: {', '.join(finished)}" if finished else ""
    raise UserError(
        f"{name}: this run is not finished: its stage {stage.name} is {how}. Run the same command again to finish "
        f"it{other}."
    )
