"""What families share whose code is Llama's under another name: its configuration, and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from espalier.errors import UserError
from espalier.models.legacy.conversion import Conversion, Named, needed, refuse, taken, thirds, token_ids

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "vocab_size",
    "rope_theta",
)


def llama_like(old: Mapping[str, Any], *, biased: bool = False) -> Conversion:
    """A family with Llama's names.

    Args:
        old: its config.json.
        biased: whether attention has biases where the configuration does not say so.
    """
    refuse(old, {"quantization_bit": 0})
    bias = bool(old.get("attention_bias", False)) or bool(old.get("bias", biased))
    settings = llama_settings(old) | {"attention_bias": bias}
    return Conversion(LlamaConfig(**settings), LlamaForCausalLM, place_llama)


def llama_settings(old: Mapping[str, Any]) -> dict[str, Any]:
    """Llama's configuration keys out of an old one."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        needed(old, name)
    defaults = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2}
    settings = defaults | taken(old, *SIZES) | token_ids(old, bos_token_id=1, eos_token_id=2)
    scaling = old.get("rope_scaling")
    if scaling:
        settings["rope_scaling"] = {"rope_type": scaling.get("rope_type", scaling.get("type")), **scaling}
        settings["rope_scaling"].pop("type", None)
    rotary = old.get("rotary")
    if isinstance(rotary, Mapping):
        settings["rope_theta"] = float(rotary.get("base", 10000.0))
        kind = rotary.get("type", "origin")
        if kind == "dynamic":
            settings["rope_scaling"] = {
                "rope_type": "dynamic",
                "factor": float(rotary.get("scaling_factor", 1.0)),
            }
        elif kind != "origin":
            raise UserError(f"config.json: rotary type {kind!r}. Wanted origin or dynamic.")
    return settings


def place_llama(name: str, tensor: Tensor) -> Named:
    """Names are kept; the table of rotary frequencies is computed anew."""
    return [] if name.endswith("rotary_emb.inv_freq") else [(name, tensor)]


def place_packed(name: str, tensor: Tensor) -> Named:
    """As `place_llama`, and ``W_pack`` (rows: query, key, value) in three."""
    if ".W_pack." not in name:
        return place_llama(name, tensor)
    size = tensor.shape[0] // 3
    return [
        (name.replace("W_pack", part), rows)
        for part, rows in zip(("q_proj", "k_proj", "v_proj"), thirds(tensor, size, size, size), strict=True)
    ]
