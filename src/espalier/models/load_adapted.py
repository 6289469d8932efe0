"""Models with what was trained on top of them: an adapter's folder, the adapter or model below it, stacks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from espalier.errors import UserError
from espalier.models.adapters import adapter as adapters
from espalier.models.endings import take_ends
from espalier.models.hub_revision import base_in
from espalier.models.legacy import checkpoint
from espalier.models.legacy.families import conversion_of
from espalier.models.load import Scaling, load_lm
from espalier.models.positions.rope import warn_if_other
from espalier.models.quantise.methods import Quantisation
from espalier.models.quantise.turn import dequantised, is_quantised, quantised


def load_with_adapter(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    rope_scaling: Scaling | None = None,
    length: int | None = None,
    quantisation: Quantisation | None = None,
) -> nn.Module:
    """A model folder, or an adapter folder: then its base model with the adapter merged into it.

    Virtual tokens cannot be merged and stay on top. The base may be an adapter's folder in its turn: that of an
    earlier stage on whose merged model this one has trained. The base gets the scaling of positions that the adapter
    was trained with, unless another is asked for.

    Where weights are to be quantised, that is done with the merged ones; a base that is quantised is turned back
    into floats first, because few bits have no room for what an adapter adds.

    Args:
        dtype: of a model that has no adapter; one that has is float32, in which the sum is computed.
    """
    given: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
        "length": length,
    }
    if not adapters.is_adapter(name):
        return load_lm(name, **given, dtype=dtype, rope_scaling=rope_scaling, quantisation=quantisation)
    base = base_of(name)
    given["rope_scaling"] = adapters.trained_scaling(name) if rope_scaling is None else rope_scaling
    if adapters.is_virtual(name):
        return with_adapters(load_with_adapter(base, **given, quantisation=quantisation), [name])
    lm = with_adapters(dequantised(load_with_adapter(base, **given)), [name])
    return lm if quantisation is None else quantised(lm, quantisation)


def with_adapters(lm: nn.Module, folders: Sequence[str]) -> nn.Module:
    """The model with saved adapters in their order, each merged; the last stays on top where it cannot be.

    Raises:
        UserError: an adapter that cannot be merged stands below another one, or is to be merged into few bits.
    """
    for folder in folders:
        if adapters.is_adapted(lm):
            adapters.merged(lm)  # says why it cannot
        warn_if_other(lm.config, adapters.trained_scaling(folder), folder)
        if is_quantised(lm) and not adapters.is_virtual(folder):
            raise UserError(
                f"{folder}: cannot be merged into weights in few bits, which have no room for what it adds. Merge it "
                "into the plain model first (espalier merge), and quantise that."
            )
        adapted: Any = adapters.load_adapter(lm, folder, trainable=False)
        lm = adapters.merged(adapted) if adapters.can_merge(adapted) else adapted
        take_ends(lm, Path(folder))
        if not adapters.is_adapted(lm):
            _renamed(lm.requires_grad_(True), folder)  # an adapter freezes what it stands on
    return lm


def vocabulary_of(name: str) -> int | None:
    """How many embeddings a saved model has that is a base; None where its files do not say."""
    name = plain_base(name)
    try:
        old = checkpoint.config_of(Path(name)) if Path(name).exists() else None
        config: Any = (
            AutoConfig.from_pretrained(name, trust_remote_code=False)
            if old is None
            else conversion_of(old).config
        )
        return int(config.get_text_config().vocab_size)
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def plain_base(name: str) -> str:
    """The model below an adapter's folder and those that it stands on; the name itself of any other model."""
    while adapters.is_adapter(name):
        name = base_of(name)
    return name


def base_of(adapter: str) -> str:
    """The model or adapter that an adapter's folder says it was made for.

    Raises:
        UserError: it says none, or a revision that cannot be fetched.
    """
    file = Path(adapter) / "adapter_config.json"
    base = base_in(json.loads(file.read_text("utf-8")))
    if base is None:
        raise UserError(f"{file}: names no base model. Set base_model_name_or_path in it.")
    return base


def _renamed(lm: Any, name: str) -> None:
    """What an adapter that is made on this model will name as its base."""
    lm.name_or_path = lm.config.name_or_path = name
