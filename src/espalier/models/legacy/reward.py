"""Reward models as earlier projects saved them: the backbone and a `v_head` in one state dict, or an adapter with its head.

- PanGu and ChatGLM-6B rewards of the Chinese chain: ``transformer.…`` and ``v_head.weight``, beside the base's config.json.
- DeepSpeed-Chat: ``rwtranrsformer.…`` (sic; ``rwtransformer.…`` later) with the names of a model without a head of its
  own, and ``v_head.weight``.
- trl's models with a value head: ``v_head.summary.weight`` and ``.bias``, beside the model's own names, or in a file of
  their own (``vhead.bin``, ``value_head.bin``, or as safetensors) beside an adapter.

A head is a linear layer from the last hidden states to one number; with a bias every score is so much higher.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from espalier.errors import UserError
from espalier.models.legacy.conversion import Conversion
from espalier.models.legacy.weights import PICKLES, read_tensors, refusal, weight_files

_HEADS = ("v_head.", "summary.")
_FILES = ("vhead", "value_head")
_WRAPPERS = ("rwtranrsformer.", "rwtransformer.", "pretrained_model.")
_BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
"""What old versions of transformers saved beside the weights."""

Head = tuple[Tensor, Tensor | None]
"""(1, d) weight; (1,) bias or None."""


def is_wrapped(folder: Path, *, allow_pickle: bool) -> bool:
    """Whether a model's folder holds a backbone and a `v_head` in one state dict.

    Pickles are looked into where `allow_pickle` says so; whoever reads the weights refuses them elsewhere.
    """
    return any(name.startswith("v_head.") for name in _names(folder, allow_pickle=allow_pickle))


def head_of(folder: Path, *, allow_pickle: bool) -> Head | None:
    """The head that lies in a file of its own, or among the weights; None where there is none.

    Raises:
        UserError: its own file is a pickle and none may be read; it is no linear layer to one number.
    """
    if not folder.is_dir():
        return None
    own = [folder / f"{name}{suffix}" for name in _FILES for suffix in (".safetensors", *PICKLES)]
    files = [file for file in own if file.is_file()][:1]
    if files and files[0].suffix in PICKLES and not allow_pickle:
        raise UserError(refusal(files[0]))
    if not files and not is_wrapped(folder, allow_pickle=allow_pickle):
        return None
    found = {
        name.removeprefix("v_head.").removeprefix("summary."): tensor.float().clone()
        for name, tensor in read_tensors(files[0] if files else folder, allow_pickle=allow_pickle)
        if name.startswith(_HEADS) or name in ("weight", "bias")
    }
    where, weight, bias = files[0] if files else folder, found.pop("weight", None), found.pop("bias", None)
    if weight is None or weight.dim() != 2 or weight.shape[0] != 1 or found:
        shown = ", ".join(found) or (f"weight {tuple(weight.shape)}" if weight is not None else "nothing")
        raise UserError(
            f"{where}: this value head is no linear layer from hidden states to one number (found {shown}). Wanted "
            "v_head.weight of shape (1, hidden size), and at most a bias."
        )
    return weight, bias


def unwrapped(folder: Path, prefix: str, *, allow_pickle: bool) -> Iterator[tuple[str, Tensor]]:
    """The backbone's tensors under the names of a causal language model whose backbone is called `prefix`."""
    names = _names(folder, allow_pickle=allow_pickle)
    renamed = _renamed([name for name in names if not name.startswith("v_head.")], prefix)
    for name, tensor in read_tensors(folder, allow_pickle=allow_pickle):
        if name in renamed:
            yield renamed[name], tensor


def conversion_of_wrapped(config: Any) -> Conversion:
    """How to read such a model of an architecture of transformers.

    Raises:
        UserError: it is no causal language model.
    """
    kinds: Any = AutoModelForCausalLM
    kind = kinds._model_mapping.get(type(config), None)
    if kind is None:
        raise UserError(
            f"config.json: {config.model_type} is no causal language model, whose reward this could be."
        )

    def place(name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        return [] if name.endswith(_BUFFERS) else [(name, tensor)]

    return Conversion(config, kind, place)


def with_head(conversion: Conversion, state: dict[str, Tensor]) -> None:
    """Zeros for a head over the vocabulary that a reward model was saved without, and has no use for."""
    kind: Any = conversion.model
    with torch.device("meta"):
        skeleton = kind(conversion.config)
    output = skeleton.get_output_embeddings()
    if output is None or conversion.config.tie_word_embeddings:
        return
    for name, parameter in skeleton.named_parameters():
        if any(parameter is own for own in output.parameters()):
            like = next(iter(state.values()))
            state.setdefault(name, torch.zeros(parameter.shape, dtype=like.dtype))


def _renamed(names: Sequence[str], prefix: str) -> dict[str, str]:
    """Old name to new: wrappers off, and the backbone's own name once before what is in it."""
    bare = {name: _without(name, _WRAPPERS) for name in names}
    inside = [name for name in bare.values() if name.startswith(f"{prefix}.")]
    if not inside:
        outer = ("lm_head.", "embed_out.")
        return {old: new if new.startswith(outer) else f"{prefix}.{new}" for old, new in bare.items()}
    if all(
        name.startswith(f"{prefix}.{prefix}.") or name.startswith(f"{prefix}.lm_head.") for name in inside
    ):
        return {old: new.removeprefix(f"{prefix}.") for old, new in bare.items()}
    return bare


def _without(name: str, wrappers: Sequence[str]) -> str:
    for wrapper in wrappers:
        name = name.removeprefix(wrapper)
    return name


def _names(folder: Path, *, allow_pickle: bool) -> list[str]:
    """Names of a folder's tensors; [] where it has no weights of its own, or none that may be looked into."""
    if not folder.is_dir() or (folder / "adapter_config.json").is_file():
        return []
    try:
        files = weight_files(folder, allow_pickle)
        if files[0].suffix in PICKLES:
            return [name for name, _ in read_tensors(folder, allow_pickle=allow_pickle)]
        names: list[str] = []
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                names += list(tensors.keys())
        return names
    except Exception:  # whoever reads the weights says what is wrong with them
        return []
