"""Checkpoints that continue a run to the last bit: safetensors and JSON, never pickle.

``folder/step-N/`` holds one ``GROUP.safetensors`` for each group of tensors (``model``, ``optimizer``, ``rng-0``) and
``state.json`` for the rest (the schedule, the feed's place, controllers). It appears whole by a rename, or not at all.
Leaves out who gathers sharded tensors and the optimiser's moments (`espalier.engine.strategy`): whoever calls hands
over whole ones, on one process.

``state.json`` lists every file with its size and checksum and carries one of its own, and all are compared before a
checkpoint is used: a flipped bit is no other model. Format 1, of 0.1.0, has sizes only and is still read.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier.disk.checksums import fault, sum_of_json, sums_of
from espalier.disk.temporary import remove_left
from espalier.engine.files import (
    disk_error,
    new_folder,
    read_safetensors,
    restore_folder,
    temporary_name,
    write_json,
    write_safetensors,
)
from espalier.errors import UserError

FORMAT = 2
Tensors = dict[str, dict[str, Tensor]]


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    keep: int | None,
    best: int | None = None,
) -> Path:
    """Writes ``folder/step-N`` and then removes the oldest beyond `keep` (null keeps all), but not that of step `best`.

    Args:
        folder: the run's folder of checkpoints; made when missing. One process writes it.
        step: the optimiser step that has just ended.
        tensors: group -> name -> tensor; tied tensors are written once.
        state: anything JSON can hold; floats come back equal to the last bit.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: the disk refused it; earlier checkpoints are untouched, nothing half-written is left.
    """
    assert keep is None or keep >= 1
    final = folder / f"step-{step}"
    remove_left(folder, "step-*", of_anyone=True)
    with new_folder(final) as temporary:
        for group, named in tensors.items():
            write_safetensors(temporary / f"{group}.safetensors", named)
        sums = sums_of(temporary, [f"{group}.safetensors" for group in tensors])
        head = {"format": FORMAT, "step": step, "files": sums, "state": state}
        write_json(temporary / "state.json", {**head, "checksum": sum_of_json(head)})
    older = [path for path in _checkpoints(folder) if path not in (final, folder / f"step-{best}")]
    for path in older[: max(0, len(older) + 1 - keep)] if keep else []:
        _remove(path)
    return final


def checkpoints_in(folder: Path) -> list[Path]:
    """All checkpoints of a run, the newest first, whole or not. Temporaries are passed over."""
    for old in folder.glob(".step-*.old"):
        restore_folder(folder / old.name[1 : -len(".old")])
    return _checkpoints(folder)[::-1]


def newest_whole(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint or None, and the newer ones that were passed over, each with what is wrong with it."""
    passed: dict[Path, str] = {}
    for path in checkpoints_in(folder):
        problem = problem_of(path)
        if problem is None:
            return path, passed
        passed[path] = problem
    return None, passed


def clear_checkpoints(folder: Path) -> None:
    """Removes them all: a run that starts again must not continue, later, from the run before it."""
    remove_left(folder, "step-*", of_anyone=True)  # of an earlier removal that was killed
    for path in _checkpoints(folder):
        _remove(path)


def load_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """`read_checkpoint`, once it is known to be whole.

    Raises:
        UserError: no checkpoint there, or an incomplete or damaged one.
    """
    if problem := problem_of(path):
        raise UserError(f"{path}: not a whole checkpoint ({problem}). Take another folder step-N beside it.")
    return read_checkpoint(path)


def read_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors (group -> name -> tensor, on the CPU) and the state of a checkpoint that `newest_whole` has found."""
    head = json.loads((path / "state.json").read_text(encoding="utf-8"))
    groups = {name.removesuffix(".safetensors"): read_safetensors(path / name) for name in head["files"]}
    return groups, head["state"]


def read_state(path: Path) -> dict[str, Any]:
    """The state alone, of a checkpoint that is whole."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))["state"]
    return state


def _checkpoints(folder: Path) -> list[Path]:
    """Folders step-N by rising N."""
    steps = [
        (int(found[1]), path)
        for path in folder.glob("step-*")
        if (found := re.fullmatch(r"step-(\d+)", path.name))
    ]
    return [path for _, path in sorted(steps)]


def problem_of(path: Path) -> str | None:
    """What keeps a folder from being a whole checkpoint, or None; every byte of it is read for that."""
    if not path.is_dir():
        return "it is no folder" if path.exists() else "it is missing"
    try:
        head = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if head["format"] == 1:
            sizes = {name: (path / name).stat().st_size for name in head["files"]}
            wrong = [name for name, size in head["files"].items() if sizes[name] != size]
            damage = f"{', '.join(wrong)} has another size than when it was written" if wrong else None
            return damage if isinstance(head["state"], dict) else "state.json is damaged"
        if head["format"] != FORMAT:
            return f"its format is {head['format']}, and this version reads 1 and {FORMAT}"
        if head.pop("checksum") != sum_of_json(head):
            return "state.json is damaged: its checksum is another than when it was written"
        return fault(path, head["files"])
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "state.json is damaged"


def _remove(path: Path) -> None:
    """By a rename first, so that a kill in the middle leaves no half checkpoint under its own name."""
    doomed = temporary_name(path)
    try:
        path.rename(doomed)
        if doomed.is_dir():
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            doomed.unlink()
    except OSError as error:
        raise disk_error(path, error) from error


def rng_to_tensors() -> dict[str, Tensor]:
    """This process's generators: torch, python's `random`, numpy's global one, and every CUDA device's."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state()
    assert version == 3 and kind == "MT19937"
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), place, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda_{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def rng_from_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Puts the generators back where `rng_to_tensors` found them (CUDA devices that this machine lacks: not)."""
    torch.set_rng_state(tensors["torch"])
    random.setstate(
        (3, tuple(tensors["python"].tolist()), next(iter(tensors["python_gauss"].tolist()), None))
    )
    *keys, place, has_gauss = tensors["numpy"].tolist()
    np.random.set_state(
        ("MT19937", np.array(keys, dtype=np.uint32), place, has_gauss, tensors["numpy_gauss"].item())
    )
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if (state := tensors.get(f"cuda_{number}")) is not None:
            torch.cuda.set_rng_state(state, number)
