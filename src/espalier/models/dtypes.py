"""In which types of number a model's files hold its weights, and a model in these types.

What is computed from weights (a merge, training) is computed in float32, and rounded once when it is written: a base in
bfloat16 stays one, at half the bytes. Headers of safetensors say it tensor by tensor, for some architectures keep a few
weights in float32 beside others in 16 bits; else config.json says it for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from espalier.disk.reading import object_or_nothing
from espalier.errors import UserError
from espalier.processor import best_precision

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""How a user names a type of number; auto is what the files have."""

_FLOAT16_ENDS = 65520
"""The smallest number that is rounded to infinity."""

_TYPES = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTypes:
    """Types of a model's weights.

    Attributes:
        usual: of most numbers.
        others: name -> type, of tensors that have another.
    """

    usual: torch.dtype
    others: Mapping[str, torch.dtype] = field(default_factory=dict)

    def round(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of any shape in the type that its name has; itself where it has it already or holds no floats.

        Raises:
            UserError: a number is too large for float16.
        """
        kind = self.others.get(name, self.usual)
        if not tensor.is_floating_point() or tensor.dtype == kind:
            return tensor
        if kind == torch.float16 and tensor.numel() and float(tensor.abs().max()) >= _FLOAT16_ENDS:
            raise UserError(
                f"{name} holds numbers up to {float(tensor.abs().max()):.3g}, and float16 ends at 65504. Take bfloat16 "
                "or float32 instead."
            )
        return tensor.to(kind)

    def __str__(self) -> str:
        return str(self.usual).removeprefix("torch.")


FLOAT32 = StoredTypes(torch.float32)


def stored_types(name: str) -> StoredTypes:
    """The types of a plain model's files; float32 where these do not say.

    Args:
        name: a folder, a file or a hub id that is in the cache or can be asked; not an adapter's folder.
    """
    folder = _folder(name)
    if folder is None:
        return FLOAT32
    numbers: Counter[torch.dtype] = Counter()
    types: dict[str, torch.dtype] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    part = tensors.get_slice(key)
                    if part.get_dtype() in _TYPES:
                        types[key] = _TYPES[part.get_dtype()]
                        numbers[types[key]] += prod(part.get_shape())
        except (OSError, SafetensorError):
            continue  # whoever loads it says what is wrong
    if not types:
        config = object_or_nothing(folder / "config.json")
        said = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
        return StoredTypes(getattr(torch, said)) if said in ("float16", "bfloat16") else FLOAT32
    usual = numbers.most_common(1)[0][0]
    return StoredTypes(usual, {key: kind for key, kind in types.items() if kind != usual})


def _folder(name: str) -> Path | None:
    path = Path(name)
    if path.exists() or not name:
        return path if name and path.is_dir() else None
    try:
        return Path(hf_hub_download(name, "config.json")).parent
    except (OSError, ValueError, HfHubHTTPError, HFValidationError):
        return None


def wanted_types(wanted: str, name: str) -> StoredTypes:
    """What a model is written in.

    Args:
        wanted: a `Dtype`.
        name: of the model that it is made from, for auto.

    Raises:
        UserError: `wanted` is none of them.
    """
    return stored_types(name) if check_dtype(wanted) == "auto" else StoredTypes(getattr(torch, wanted))


def check_dtype(wanted: str) -> str:
    """The name itself.

    Raises:
        UserError: it names no type of weights.
    """
    if wanted not in Dtype.__args__:  # type: ignore[attr-defined]
        raise UserError(f"--dtype {wanted}: wanted auto, float32, bfloat16 or float16.")
    return wanted


def dtype_to_use(wanted: str, name: str, device: str) -> torch.dtype:
    """In what a model is held in memory and computes.

    Args:
        wanted: a `Dtype`; auto is the files' own where the device multiplies it by itself, else float32: without
            instructions for it, 16 bits are computed 10 to 300 times as slowly, and float16 cannot hold what
            bfloat16 does.
        name: of the model, as in `stored_types`.
        device: such as "cpu" or "cuda:0".

    Raises:
        UserError: `wanted` is none of them.
    """
    if check_dtype(wanted) != "auto":
        made: torch.dtype = getattr(torch, wanted)
        return made
    own = stored_types(name).usual
    if own == torch.bfloat16 and best_precision(device.split(":")[0]) == "bf16":
        return own
    return own if own == torch.float16 and device.startswith("cuda") else torch.float32


def hold_in(lm: nn.Module, kind: torch.dtype, *, exactly: bool, all_frozen: bool = False) -> int:
    """Hold the linear layers' frozen weights in a type of 16 bits; returns how many bytes that saves.

    Under autocast, which brings them to its own type anyway, a weight that is the same number in both types gives the
    same products. Embeddings, also as a head that shares them, and norms stay float32: they are what the hidden states
    begin as and are multiplied by outside of such products.

    Args:
        lm: float32, with or without an adapter.
        kind: bfloat16 or float16.
        exactly: leave out weights that would be rounded.
        all_frozen: whether nothing of the model is trained, whatever its parameters say.
    """
    embeddings = lm.get_input_embeddings()  # type: ignore[operator]
    shared = {id(parameter) for parameter in embeddings.parameters()}
    saved = 0
    for module in lm.modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        for parameter in (module.weight, module.bias):
            if parameter is None or id(parameter) in shared or (parameter.requires_grad and not all_frozen):
                continue
            narrow = parameter.data.to(kind)
            if parameter.dtype == torch.float32 and (
                not exactly or torch.equal(narrow.float(), parameter.data)
            ):
                saved += parameter.numel() * (parameter.element_size() - narrow.element_size())
                parameter.data = narrow
    return saved


def round_weights(lm: nn.Module, types: StoredTypes) -> None:
    """The weights of a plain model rounded in place, one at a time; weights that are shared stay so."""
    for name, parameter in lm.named_parameters():
        parameter.data = types.round(name, parameter.data)
