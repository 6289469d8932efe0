"""The configuration of a new model: sizes that contradict each other are found before a layer computes with them.

Where the contradiction is between what the user gave and a default of the architecture (qwen2 has 32 key/value
heads, whatever the number of heads), the default follows, and a line says so. Between two given sizes it is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING

from espalier.errors import Notice, UserError
from espalier.models.quiet import first_line

_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_SIZES = ("hidden", "embd", "head", "layer", "d_model", "intermediate", "ffn", "inner", "rank", "dim", "kv")
_WIDTHS = ("head_dim", "qk_head_dim", "qk_nope_head_dim", "d_kv", "kv_channels")
"""Keys by which an architecture sets the width of a head apart from hidden_size."""


def settled(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings, with defaults that contradict them put right.

    Raises:
        UserError: two given sizes contradict each other, or one is no size.
    """
    for key, value in given.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and value < 1 and any(part in key for part in ("head", "hidden", "embd", "d_model")):
            raise UserError(f"model_config: {key} is {value}. Wanted a number of at least 1.")
    if kind not in CONFIG_MAPPING:
        return dict(given)
    made_of: Any = CONFIG_MAPPING[kind]
    plain = made_of()
    names = dict(plain.attribute_map or {})
    known = plain.to_dict()
    made = {names.get(key, key): value for key, value in given.items()}
    heads_key = names.get("num_attention_heads", "num_attention_heads")
    heads = made.get(heads_key, known.get(heads_key))
    if not isinstance(heads, int):
        return dict(given)
    shown = {names.get(key, key): key for key in given}
    _divisible(names, made, known, heads_key, heads, shown)
    with suppress(Exception):  # a default may follow the heads by itself, as Llama's key heads do
        known = made_of(**{heads_key: heads}).to_dict()
    settings = dict(given)
    for key in _KEY_HEADS:
        count = made.get(key, known.get(key))
        if not isinstance(count, int) or heads % count == 0:
            continue
        if key in made:
            raise UserError(
                f"model_config: {heads_key} ({heads}{_whence(heads_key, made)}) is not divisible by {key} ({count}). "
                f"Set both so that it is, such as {key}: {heads}."
            )
        settings[key] = heads
        _say(f"{key} is {heads}, as {heads_key} says; the default of {kind}, {count}, does not divide it")
    width = known.get("rotary_dim")
    hidden = made.get(names.get("hidden_size", "hidden_size"))
    if (
        isinstance(width, int)
        and isinstance(hidden, int)
        and "rotary_dim" not in made
        and width > hidden // heads
    ):
        settings["rotary_dim"] = hidden // heads
        _say(f"rotary_dim is {hidden // heads}, a head's width; the default of {kind}, {width}, is more")
    return settings


def _divisible(
    names: Mapping[str, str],
    made: Mapping[str, Any],
    known: Mapping[str, Any],
    heads_key: str,
    heads: int,
    shown: Mapping[str, str],
) -> None:
    key = names.get("hidden_size", "hidden_size")
    hidden = made.get(key, known.get(key))
    apart = any(made.get(name) or known.get(name) for name in _WIDTHS)
    if isinstance(hidden, int) and hidden % heads and not apart and {key, heads_key} & made.keys():
        raise UserError(
            f"model_config: {shown.get(key, key)} ({hidden}{_whence(key, made)}) is not divisible by "
            f"{shown.get(heads_key, heads_key)} "
            f"({heads}{_whence(heads_key, made)}). Set both, so that each head gets as much."
        )


def _whence(key: str, made: Mapping[str, Any]) -> str:
    return "" if key in made else ", by default"


def _say(text: str) -> None:
    warnings.warn(f"model_config: {text}", Notice, stacklevel=4)


def refusal(kind: str, given: Mapping[str, Any], error: BaseException) -> UserError:
    """One message for whatever a class of transformers finds wrong with sizes, often deep inside a layer."""
    sizes = {k: v for k, v in given.items() if any(part in k for part in _SIZES)}
    shown = ", ".join(f"{key} {value}" for key, value in sizes.items()) or "none, so its defaults"
    why = " ".join(str(error).split())[:200] or first_line(error)
    return UserError(
        f"model_config: no {kind} can compute with these sizes ({why}). Given: {shown}. hidden_size is to be divisible "
        "by num_attention_heads, that by num_key_value_heads, and what is left out is this architecture's default."
    )


def try_out(lm: nn.Module) -> None:
    """One forward of two tokens, which fails where sizes contradict each other in a way that no table knows."""
    model: Any = lm
    ids = torch.tensor([[0, 1]], device=next(lm.parameters()).device)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    training = lm.training
    with torch.no_grad():
        lm.eval()
        lm(input_ids=ids, **more)
    lm.train(training)
