"""Tensors on disk, whole or not at all; the rest of writing that way is `espalier.disk`, handed on from here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from espalier.disk.temporary import temporary_name as temporary_name
from espalier.disk.writing import check_new_folder as check_new_folder
from espalier.disk.writing import disk_error as disk_error
from espalier.disk.writing import new_folder as new_folder
from espalier.disk.writing import replace_folder as replace_folder
from espalier.disk.writing import restore_folder as restore_folder
from espalier.disk.writing import write_json as write_json
from espalier.disk.writing import write_text as write_text
from espalier.disk.writing import write_whole
from espalier.errors import UserError

_SAME = "same_tensor_as"


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes named tensors of any device, shape and dtype; tied ones once, with the other names beside.

    Raises:
        UserError: the disk refuses it (path, free bytes, remedy).
    """
    own: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            same[name] = seen[place]
            continue
        seen[place] = name
        # safetensors refuses views that share a storage, so a view is copied out of it.
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
        copied = not whole or storage.data_ptr() in storages
        storages.add(storage.data_ptr())
        tensor = tensor.detach()
        own[name] = (tensor.clone(memory_format=torch.contiguous_format) if copied else tensor).cpu()
    notes = dict(metadata or {}) | ({_SAME: json.dumps(same)} if same else {})
    write_whole(path, lambda temporary: save_file(own, temporary, metadata=notes or None))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """What `write_safetensors` wrote, on the CPU, tied tensors tied again.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            same = json.loads((file.metadata() or {}).get(_SAME, "{}"))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}). Take an earlier checkpoint."
        ) from error
    return tensors | {name: tensors[source] for name, source in same.items()}
