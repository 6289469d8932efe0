"""What an earlier start has left in a stage's folder, and what this start may do with it.

A finished stage of the same options and content is skipped. Where only content has changed (data edited, an earlier
stage trained anew) it runs again and says why; its old model stays until the new one is whole. Other options are
refused, because the folder's model would be overwritten unasked. A run that was interrupted goes on from a checkpoint,
which is compared in its turn. ``resume: false`` asks for a new start whatever is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espalier import config
from espalier.disk.checksums import Sums, fault, sums_of
from espalier.disk.reading import object_or_nothing
from espalier.engine import checkpoint, files
from espalier.errors import UserError
from espalier.runs.catalogue import CLASSES
from espalier.runs.provenance import KeyChange, MadeFrom, made_from

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Decision:
    """What to do with a folder.

    Attributes:
        done: the summary of a finished run that is to be skipped, else None.
        checkpoint: a whole one of this run, to go on from; None: the run begins, and checkpoints that are there go away.
        notes: lines to show: why an earlier result does not count, what is damaged.
    """

    done: dict[str, Any] | None = None
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()


def decide(folder: Path, now: MadeFrom, resume: bool | str) -> Decision:
    """What to do with what a stage's folder holds.

    Raises:
        UserError: it holds a model or a checkpoint of other options or content, a model of which nobody knows from
            what it was made or whose weights have changed since, or checkpoints of which none is whole.
    """
    if resume is False:
        return Decision()
    for old in folder.glob(".*.old"):  # a kill between the two renames that put a new model into its place
        files.restore_folder(folder / old.name[1 : -len(".old")])
    summary = read_summary(folder)
    missing = fault_of_models(folder, summary) if summary.get("status") == "done" else None
    if summary.get("status") == "done" and missing is None:
        refuse_other_weights(folder, summary)
        return finished(folder, now, summary)
    notes = [f"was finished, but {missing}"] if missing else []
    if isinstance(resume, str):
        checkpoint.load_checkpoint(Path(resume))
        return Decision(
            checkpoint=Path(resume), notes=(*notes, *_compared(folder, now, Path(resume), summary))
        )
    newest, passed = checkpoint.newest_whole(folder / CHECKPOINTS)
    faults = "\n".join(f"  {path}: {problem}" for path, problem in passed.items())
    if newest is not None:
        if passed:
            notes.append(f"damaged checkpoints are passed over, and {newest.name} is taken:\n{faults}")
        return Decision(checkpoint=newest, notes=(*notes, *_compared(folder, now, newest, summary)))
    if passed:
        raise UserError(
            f"{folder / CHECKPOINTS}: no checkpoint here is whole, and the run does not start from 0 unasked:\n"
            f"{faults}\n{ways_out(folder)}"
        )
    return Decision(notes=(*notes, *_begun(folder, now, summary, whole=not missing)))


def finished(folder: Path, now: MadeFrom, summary: Mapping[str, Any]) -> Decision:
    """Skipped, run again, or refused."""
    before = noted(folder, summary)
    if before is None:
        raise UserError(
            f"{folder}: holds the model of a run whose options cannot be read. {ways_out(folder)}"
        )
    differences = now.differences(before)
    if not differences:
        return Decision(done=dict(summary))
    if any(difference.by_option for difference in differences):
        raise UserError(
            f"{folder}: is finished, and was made with other options than these:\n{listed(differences)}\n"
            + ways_out(folder)
        )
    return Decision(notes=(_again(differences),))


def _compared(folder: Path, now: MadeFrom, path: Path, summary: Mapping[str, Any]) -> list[str]:
    """A continuation goes on with what the run began with, or not at all; lines to show."""
    before = MadeFrom.from_json(checkpoint.read_state(path).get("made_from")) or noted(folder, summary)
    if before is None:
        return [
            f"{path} has no note of what it was made from (an earlier version wrote it); nothing is compared"
        ]
    differences = now.differences(before)
    if differences:
        raise UserError(
            f"{path}: this checkpoint was made from other options or content than these:\n{listed(differences)}\n"
            + ways_out(folder)
        )
    return []


def _begun(folder: Path, now: MadeFrom, summary: Mapping[str, Any], *, whole: bool) -> list[str]:
    """A folder without a checkpoint, whose run was not finished; lines to show."""
    before = noted(folder, summary)
    differences = [] if before is None else now.differences(before)
    if whole and (folder / "model").exists():
        if before is None or any(difference.by_option for difference in differences):
            state = (
                f" of other options:\n{listed(differences)}\n"
                if differences
                else ", and no note of its options. "
            )
            raise UserError(f"{folder}: holds a model{state}{ways_out(folder)}")
        return [_again(differences)] if differences else []
    return (
        [f"an earlier start has left no checkpoint; since then\n{listed(differences)}"] if differences else []
    )


def _again(differences: list[KeyChange]) -> str:
    return f"runs again, for what it was made from has changed:\n{listed(differences)}"


def ways_out(folder: Path) -> str:
    """How a user who is refused goes on; both lose nothing unasked."""
    name = folder.name
    return (
        f"Restore them, set resume=false to start again (in a pipeline {name}.resume=false), or choose another "
        "output_dir."
    )


def listed(differences: list[KeyChange]) -> str:
    return "\n".join(f"  {difference.text}" for difference in differences)


def read_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` as far as it can be read; {} where it cannot."""
    return object_or_nothing(folder / "summary.json")


def noted(folder: Path, summary: Mapping[str, Any]) -> MadeFrom | None:
    """From what a folder's run was made; of version 0.1.0, which noted less, its options and data."""
    earlier = MadeFrom.from_json(summary.get("made_from"))
    if earlier is not None or not summary:
        return earlier
    try:
        raw = config.load_yaml(folder / "config.yaml")
        options = config.build(raw, CLASSES[str(summary["stage"])], all_classes=CLASSES)
        # That version wrote `precision: auto` into its config, and what that came to into its summary.
        now = made_from(
            options,
            processes=int(summary["processes"]),
            known=folder / "files.json",
            precision=str(summary["precision"]),
        )
        data = {str(file): str(identity) for file, identity in summary["data"].items()}
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None
    known = {key: files for key, files in now.contents.items() if files and set(files) <= set(data)}
    return MadeFrom(now.options, {key: {file: data[file] for file in files} for key, files in known.items()})


def _weights(summary: Mapping[str, Any]) -> dict[str, Sums]:
    """Folder -> `weights_in` it, of a summary that any version wrote; what is in another form is not known."""
    models = summary.get("models")
    if not isinstance(models, dict):
        return {}
    return {
        name: {file: noted for file, noted in weights.items() if isinstance(noted, list) and len(noted) == 2}
        for name, weights in models.items()
        if isinstance(weights, dict)
    }


def fault_of_models(folder: Path, summary: Mapping[str, Any]) -> str | None:
    """What is missing of the models that a finished run says it has saved, or None."""
    for name, weights in (_weights(summary) or {"model": {}}).items():
        if not any((folder / name / file).is_file() for file in ("config.json", "adapter_config.json")):
            return (
                f"its folder {name} is missing"
                if not (folder / name).is_dir()
                else f"{name} has no config.json"
            )
        if not weights and not [*(folder / name).glob("*.safetensors")]:
            return f"{name} has no weights"
        for file, (size, _) in weights.items():
            path = folder / name / file
            if not path.is_file():
                return f"{name}/{file} is missing"
            if path.stat().st_size != size:
                return f"{name}/{file} has {path.stat().st_size:,} bytes, and {size:,} were written"
    return None


def refuse_other_weights(folder: Path, summary: Mapping[str, Any]) -> None:
    """What was trained is never written over unasked, and what is damaged is never used without a word.

    Raises:
        UserError: weights of a finished run are not those that it wrote: a flipped bit, or put there by hand.
    """
    for name, weights in _weights(summary).items():
        harm = fault(folder / name, weights)
        if harm is not None:
            raise UserError(
                f"{folder / name}: {harm}, or somebody has put another there. A model of your own is better kept "
                f"outside of a run's folder. {ways_out(folder)}"
            )


def weights_in(folder: Path) -> dict[str, list[Any]]:
    """Size and checksum of each file of a model's weights, for `fault_of_models`; others may be edited by hand."""
    return sums_of(folder, sorted(path.name for path in folder.glob("*.safetensors")))
