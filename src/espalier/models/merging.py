"""Adapters and their base as one plain model: a stack in its order, on the base that it was trained on or another.

What comes out says what the base with its adapters on top says. Tied embeddings that an adapter changes on one side
come apart, a vocabulary that was larger in training grows as it was there, and a base in few bits is turned back into
floats first (or another is named, such as the model that it was made from).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from espalier.errors import UserError
from espalier.models import adapters, load
from espalier.models.quantise.turn import dequantised

VIRTUAL = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT")
"""PEFT's adapters that are no part of any weight."""


@dataclass(frozen=True)
class Stack:
    """Attributes:
    base: a model's folder or hub id.
    adapters: folders in the order in which they are merged.
    """

    base: str
    adapters: tuple[str, ...]


def stack_of(folders: Sequence[str], base: str | None = None) -> Stack:
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
        named = _settings(chain[0]).get("base_model_name_or_path")
        if not named:
            raise UserError(f"{chain[0]}/adapter_config.json: names no base model. Name it with --base.")
        if not (Path(named) / "adapter_config.json").is_file():
            base = str(named)
        elif named in chain:
            raise UserError(f"{named}: stands on itself. Name the model with --base.")
        else:
            chain.insert(0, str(named))
    if (Path(base) / "adapter_config.json").is_file():
        below = stack_of([base])
        base, chain = below.base, [*below.adapters, *chain]
    return Stack(base, tuple(chain))


def merged_stack(stack: Stack, *, allow_pickle: bool = False) -> nn.Module:
    """The plain float32 model.

    Raises:
        UserError: an adapter does not fit.
    """
    lm = dequantised(load.load_lm(stack.base, allow_pickle=allow_pickle))
    for folder in stack.adapters:
        _grow(lm, Path(folder))
        lm = adapters.merged(adapters.load_adapter(lm, folder, trainable=False))
    return lm


def _settings(folder: str) -> dict[str, Any]:
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"{folder}: no adapter_config.json here. Wanted a folder that PEFT has saved.")
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    if found.get("peft_type") in VIRTUAL:
        raise UserError(
            f"{folder}: an adapter of kind {found['peft_type']} cannot be merged: its virtual tokens stand before the "
            "text and are no part of a weight. Use the adapter's folder as it is; chat and evaluate take it as a model."
        )
    return found


def _grow(lm: nn.Module, folder: Path) -> None:
    """As many embeddings as the adapter was trained with, where it brings its own."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return
    inner = lm.get_input_embeddings()  # type: ignore[operator]
    name = next(n for n, module in lm.named_modules() if module is inner)
    with safe_open(file, framework="pt") as held:
        for key in held.keys():  # noqa: SIM118
            if key.endswith((f"{name}.weight", f"{name}.base_layer.weight")):
                rows = held.get_slice(key).get_shape()[0]
                if rows != inner.weight.shape[0]:
                    lm.resize_token_embeddings(rows, mean_resizing=False)  # type: ignore[operator]
