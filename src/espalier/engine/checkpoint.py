"""Checkpoints that continue a run to the last bit: safetensors and JSON, never pickle.

``folder/step-N/`` holds one ``GROUP.safetensors`` for each group of tensors (``model``, ``optimizer``, ``rng-0``) and
``state.json`` for the rest (the schedule, the feed's place, controllers). It appears whole by a rename, or not at all.
Leaves out who gathers sharded tensors and the optimiser's moments (`espalier.engine.strategy`): whoever calls hands
over whole ones, on one process.
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

from espalier.engine.files import (
    new_folder,
    read_safetensors,
    restore_folder,
    temporary_name,
    write_json,
    write_safetensors,
)
from espalier.errors import UserError

FORMAT = 1
Tensors = dict[str, dict[str, Tensor]]


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    keep: int | None,
) -> Path:
    """Writes ``folder/step-N`` and then removes the oldest beyond `keep` (null keeps all).

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
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    with new_folder(final) as temporary:
        sizes = {}
        for group, named in tensors.items():
            file = temporary / f"{group}.safetensors"
            write_safetensors(file, named)
            sizes[file.name] = file.stat().st_size
        write_json(temporary / "state.json", {"format": FORMAT, "step": step, "files": sizes, "state": state})
    older = [path for path in _checkpoints(folder) if path != final]
    for path in older[: max(0, len(older) + 1 - keep)] if keep else []:
        _remove(path)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step, or None. Temporaries and damaged folders are passed over."""
    for old in folder.glob(".step-*.old"):
        restore_folder(folder / old.name[1 : -len(".old")])
    return next((path for path in reversed(_checkpoints(folder)) if not _missing(path)), None)


def clear_checkpoints(folder: Path) -> None:
    """Removes them all: a run that starts again must not continue, later, from the run before it."""
    for path in _checkpoints(folder):
        _remove(path)


def load_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors (group -> name -> tensor, on the CPU) and the state of one checkpoint.

    Raises:
        UserError: no checkpoint there, an incomplete one, or a damaged file.
    """
    if problem := _missing(path):
        raise UserError(f"{path}: not a whole checkpoint ({problem}). Take another folder step-N beside it.")
    head = json.loads((path / "state.json").read_text(encoding="utf-8"))
    groups = {name.removesuffix(".safetensors"): read_safetensors(path / name) for name in head["files"]}
    return groups, head["state"]


def _checkpoints(folder: Path) -> list[Path]:
    """Folders step-N by rising N."""
    steps = [
        (int(found[1]), path)
        for path in folder.glob("step-*")
        if (found := re.fullmatch(r"step-(\d+)", path.name))
    ]
    return [path for _, path in sorted(steps)]


def _missing(path: Path) -> str | None:
    """What keeps a folder from being a whole checkpoint of this format, or None."""
    try:
        head = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if head["format"] != FORMAT:
            return f"its format is {head['format']}, this version reads {FORMAT}"
        wrong = [name for name, size in head["files"].items() if (path / name).stat().st_size != size]
    except OSError as error:
        return f"{error.filename} is missing"
    except (ValueError, KeyError, TypeError):
        return "state.json is damaged"
    return f"{', '.join(wrong)} has another size than when it was written" if wrong else None


def _remove(path: Path) -> None:
    """By a rename first, so that a kill in the middle leaves no half checkpoint under its own name."""
    doomed = temporary_name(path)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


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
