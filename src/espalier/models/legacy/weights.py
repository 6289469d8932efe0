"""The tensors of a checkpoint folder, file by file: safetensors, or pickles through torch's safe loader.

A pickle can run code when it is read. `torch.load(weights_only=True)` refuses everything but tensors and
plain containers, and even that is done only where the user has asked for it (`allow_pickle`).
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from espalier.errors import UserError

PICKLES = (".bin", ".pth", ".pt")


def weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """The files that hold the weights, all of one kind; an index file decides where there is one.

    Args:
        folder: with the weights, or one file of them.
        allow_pickle: whether .bin, .pth and .pt may be read.

    Raises:
        UserError: there are none, some of an index are missing, or they are pickles and none was asked for.
    """
    if folder.is_file():
        files = [folder]
    else:
        files = _indexed(folder, "model.safetensors.index.json") or sorted(folder.glob("*.safetensors"))
        files = [file for file in files if not file.name.startswith("adapter")]
        if not files:
            files = _indexed(folder, "pytorch_model.bin.index.json")
            files = files or sorted(folder.glob("pytorch_model*.bin"))
        if not files:
            files = [f for f in sorted(folder.iterdir()) if f.suffix in PICKLES and "training" not in f.name]
    if not files:
        raise UserError(f"{folder}: no weights here (no *.safetensors, *.bin or *.pth). Copy them here.")
    if files[0].suffix in PICKLES and not allow_pickle:
        raise UserError(refusal(files[0]))
    return files


def refusal(file: Path) -> str:
    """What to tell someone whose weights are pickles."""
    return (
        f"{file}: the weights are pickles, which can run code when they are read. Set `allow_pickle: true`, on the "
        "command line --allow-pickle, to read them through torch's safe loader (tensors only), or convert them to safetensors once: "
        "espalier convert IN OUT --allow-pickle."
    )


def not_safe(file: Path | str, error: BaseException) -> str:
    """What to say of a pickle that torch's safe loader refuses; torch's own advice would have it run what is in it."""
    wants = re.search(r"GLOBAL ([\w.]+)", str(error))
    if wants is not None:
        why = f"it wants to run {wants.group(1)}"
    elif isinstance(error, pickle.UnpicklingError):
        why = "it holds more than tensors, or is cut"
    else:
        why = str(error).strip().split("\n")[0][:200]
    return (
        f"{file}: torch's safe loader does not take it ({why}). Wanted a state dict of tensors alone; nothing was "
        "run. Get the weights as safetensors from whoever made them."
    )


def _indexed(folder: Path, name: str) -> list[Path]:
    index = folder / name
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{index}: no index of weights ({error}). Wanted weight_map, tensor to file."
        ) from error
    files = [folder / str(part) for part in names]
    missing = [file.name for file in files if not file.is_file() or file.parent != folder]
    if missing:
        raise UserError(
            f"{index}: names {', '.join(missing[:4])}, which {'is' if len(missing) == 1 else 'are'} not here "
            f"({len(missing)} of {len(files)} files). Copy the whole checkpoint."
        )
    return files


def read_tensors(folder: Path, *, allow_pickle: bool) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as the files hold them, each name once.

    Raises:
        UserError: from `weight_files`; or a file cannot be read, or holds more than tensors.
    """
    for file in weight_files(folder, allow_pickle):
        if file.suffix in PICKLES:
            yield from _pickled(file)
            continue
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    yield name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: cannot be read as safetensors ({error}). Copy it again.") from error


def _pickled(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the form before torch 1.6 cannot be mapped
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(not_safe(file, error)) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise UserError(f"{file}: holds a {type(state).__name__}. Wanted a state dict (names to tensors).")
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            yield str(name), tensor
