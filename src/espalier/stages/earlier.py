"""What an earlier start has left in a stage's folder, and what this start may do with it.

A finished stage of the same options and content is skipped. Where only content has changed (data edited, an earlier
stage trained anew) it runs again and says why; its old model stays until the new one is whole. Other options are
refused, because the folder's model would be overwritten unasked. A run that was interrupted goes on from a checkpoint,
which `espalier.stages.resume` compares in its turn. ``resume: false`` asks for a new start whatever is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espalier import config
from espalier.engine import checkpoint, files
from espalier.errors import UserError
from espalier.stages.catalogue import CLASSES
from espalier.stages.provenance import Difference, MadeFrom, made_from

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Decision:
    """What to do with a folder.

    Attributes:
        done: the summary of a finished run that is to be skipped, else None.
        why: a line to show, where an earlier result does not count any more.
        from_start: whether checkpoints are no part of this run and go away.
    """

    done: dict[str, Any] | None = None
    why: str | None = None
    from_start: bool = False


def decide(folder: Path, now: MadeFrom, resume: bool | str) -> Decision:
    """What to do with what a stage's folder holds.

    Raises:
        UserError: it holds a model of other options, or one of which nobody knows from what it was made.
    """
    if resume is False:
        return Decision(from_start=True)
    for old in folder.glob(".*.old"):  # a kill between the two renames that put a new model into its place
        files.restore_folder(folder / old.name[1 : -len(".old")])
    summary = read_summary(folder)
    before = noted(folder, summary)
    differences = [] if before is None else now.differences(before)
    missing = fault_of_models(folder, summary)
    done = summary.get("status") == "done"
    if done and missing is None:
        if before is None:
            raise UserError(
                f"{folder}: holds the model of a run whose options cannot be read. {ways_out(folder)}"
            )
        if not differences:
            return Decision(done=summary)
        if any(difference.by_option for difference in differences):
            raise UserError(
                f"{folder}: is finished, and was made with other options than these:\n{listed(differences)}\n"
                + ways_out(folder)
            )
        return Decision(why=_again(differences), from_start=True)
    if checkpoint.checkpoints_in(folder / CHECKPOINTS):
        return Decision(why=f"was finished, but {missing}; goes on from its checkpoint" if done else None)
    if done:
        return Decision(why=f"was finished, but {missing}; runs again")
    if not (folder / "model").exists():
        changed = f"; since then\n{listed(differences)}" if differences else ""
        return Decision(why=f"an earlier start has left no checkpoint{changed}" if changed else None)
    if before is None or any(difference.by_option for difference in differences):
        said = (
            f" of other options:\n{listed(differences)}\n"
            if differences
            else ", and no note of its options. "
        )
        raise UserError(f"{folder}: holds a model{said}{ways_out(folder)}")
    return Decision(why=_again(differences) if differences else None)


def _again(differences: list[Difference]) -> str:
    return f"runs again, for what it was made from has changed:\n{listed(differences)}"


def ways_out(folder: Path) -> str:
    """How a user who is refused goes on; both lose nothing unasked."""
    name = folder.name
    return (
        f"Restore them, set resume=false to start again (in a pipeline {name}.resume=false), or choose another "
        "output_dir."
    )


def listed(differences: list[Difference]) -> str:
    return "\n".join(f"  {difference.said}" for difference in differences)


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` as far as it can be read; {} where it cannot."""
    try:
        found = json.loads((folder / "summary.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def noted(folder: Path, summary: Mapping[str, Any]) -> MadeFrom | None:
    """From what a folder's run was made; of version 0.1.0, which noted less, its options and data."""
    found = MadeFrom.from_json(summary.get("made_from"))
    if found is not None or not summary:
        return found
    try:
        raw = config.load_yaml(folder / "config.yaml")
        options = config.build(raw, CLASSES[str(summary["stage"])], all_classes=CLASSES)
        now = made_from(options, processes=int(summary["processes"]), known=folder / "files.json")
        data = {str(file): str(said) for file, said in summary["data"].items()}
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None
    known = {key: files for key, files in now.contents.items() if files and set(files) <= set(data)}
    return MadeFrom(now.options, {key: {file: data[file] for file in files} for key, files in known.items()})


def fault_of_models(folder: Path, summary: Mapping[str, Any]) -> str | None:
    """What is missing of the models that a finished run says it has saved, or None."""
    models = summary.get("models")
    for name, weights in (models if isinstance(models, dict) and models else {"model": {}}).items():
        if not any((folder / name / file).is_file() for file in ("config.json", "adapter_config.json")):
            return (
                f"its folder {name} is missing"
                if not (folder / name).is_dir()
                else f"{name} has no config.json"
            )
        if not weights and not [*(folder / name).glob("*.safetensors")]:
            return f"{name} has no weights"
        for file, size in weights.items():
            path = folder / name / file
            if not path.is_file():
                return f"{name}/{file} is missing"
            if path.stat().st_size != size:
                return f"{name}/{file} has {path.stat().st_size:,} bytes, and {size:,} were written"
    return None


def weights_in(folder: Path) -> dict[str, int]:
    """File -> bytes of a model's weights, as `fault_of_models` compares them; other files may be edited by hand."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
