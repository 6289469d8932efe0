"""Adapters and their base as one plain model: a stack in its order, on the base that it was trained on or another.

What comes out says what the base with its adapters on top says. Tied embeddings that an adapter changes on one side
come apart, a vocabulary that was larger in training grows as it was there, and a base in few bits is turned back into
floats first (or another is named, such as the model that it was made from).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier.errors import UserError
from espalier.models import load, load_adapted
from espalier.models.adapters import adapter as adapters
from espalier.models.dtypes import FLOAT32, StoredTypes, stored_types
from espalier.models.hub_revision import base_in
from espalier.models.legacy import checkpoint
from espalier.models.quantise.methods import entry_of
from espalier.models.quantise.turn import dequantised


@dataclass(frozen=True)
class AdapterStack:
    """Attributes:
    base: a model's folder or hub id.
    adapters: folders in the order in which they are merged.
    """

    base: str
    adapters: tuple[str, ...]


def stack_of(folders: Sequence[str], base: str | None = None) -> AdapterStack:
    """What is merged into what.

    Args:
        folders: of adapters, the one that was trained first first; one whose base is an adapter's folder in its turn
            stands on that.
        base: in place of the one that the first of them names.

    Raises:
        UserError: a folder that is no adapter's, one without a base, or one that cannot be merged.
    """
    chain = list(folders)
    for folder in folders:
        _settings(folder)
    while base is None:
        named = base_in(_settings(chain[0]))
        if not named:
            raise UserError(f"{chain[0]}/adapter_config.json: names no base model. Name it with --base.")
        if not (Path(named) / "adapter_config.json").is_file():
            base = named
        elif named in chain:
            raise UserError(f"{named}: stands on itself. Name the model with --base.")
        else:
            chain.insert(0, named)
    if (Path(base) / "adapter_config.json").is_file():
        below = stack_of([base])
        base, chain = below.base, [*below.adapters, *chain]
    return AdapterStack(base, tuple(chain))


def merged_stack(
    stack: AdapterStack, *, allow_pickle: bool = False, types: StoredTypes = FLOAT32
) -> nn.Module:
    """The plain model, with its positions as the last adapter that says something of them was trained with.

    Args:
        types: in which it will be written. The model is float32, or has these types already where that gives the same
            numbers (one adapter, a base whose files hold nothing else) and takes half of the memory.

    Raises:
        UserError: an adapter does not fit.
    """
    scalings = [adapters.trained_scaling(folder) for folder in reversed(stack.adapters)]
    scaling = next((given for given in scalings if given is not None), None)
    dtype = types.usual if _holds_alike(stack, types) else torch.float32
    lm = dequantised(load.load_lm(stack.base, dtype=dtype, allow_pickle=allow_pickle, rope_scaling=scaling))
    return load_adapted.with_adapters(lm, stack.adapters)


def _holds_alike(stack: AdapterStack, types: StoredTypes) -> bool:
    """Whether the base's files hold one type of 16 bits, in which the result is written, too.

    Old checkpoints compute while they are read, a second adapter is added to a sum that is not rounded yet, and what is
    in few bits is turned into float32.
    """
    base = Path(stack.base)
    if len(stack.adapters) > 1 or types.others or types.usual == torch.float32 or not base.is_dir():
        return False
    old = checkpoint.config_of(base) is not None or entry_of(stack.base) is not None
    return not old and stored_types(stack.base) == types


def _settings(folder: str) -> dict[str, Any]:
    if adapters.is_virtual(folder):
        raise UserError(
            f"{folder}: an adapter of virtual tokens cannot be merged: they stand before the text and are no part of a "
            "weight. Use the adapter's folder as it is; every command takes it as a model."
        )
    return adapters.read_settings(folder)
