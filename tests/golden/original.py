"""Tensors of today's modules under the names and in the layout of the original code.

Written from the original layouts, not from `espalier.models.legacy`: it is the other direction, and the tests
hold the two against each other. The tables that the originals saved beside their weights (masks, rotary
frequencies) are added, because a reader must pass over them.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


def original(family: str, state: State, config: dict[str, Any]) -> State:
    """The state dict of the module of `family` as its original code saves it.

    Args:
        family: a name of `tests.golden.configs.CONFIGS`.
        state: of the module that is used today.
        config: the original config.json.
    """
    made = dict(state)
    if family.startswith("baichuan"):
        made = _stacked(made, "self_attn.W_pack")
    elif family.startswith("qwen"):
        made = _renamed(_stacked(made, "attn.c_attn"), _QWEN)
    elif family == "chatglm2":
        made = _renamed(_stacked(made, "self_attention.query_key_value"), _CHATGLM2)
    elif family == "glm":  # the head is the table of embeddings, which stands outside of the transformer
        del made["lm_head.weight"]
        made["word_embeddings.weight"] = made.pop("transformer.word_embeddings.weight")
    return made | _tables(family, config)


_QWEN = {
    r"^model\.embed_tokens\.": "transformer.wte.",
    r"^model\.norm\.": "transformer.ln_f.",
    r"^model\.layers\.": "transformer.h.",
    r"\.input_layernorm\.": ".ln_1.",
    r"\.post_attention_layernorm\.": ".ln_2.",
    r"\.self_attn\.o_proj\.": ".attn.c_proj.",
    r"\.mlp\.up_proj\.": ".mlp.w1.",
    r"\.mlp\.gate_proj\.": ".mlp.w2.",
    r"\.mlp\.down_proj\.": ".mlp.c_proj.",
}
_CHATGLM2 = {
    r"^model\.embed_tokens\.": "transformer.embedding.word_embeddings.",
    r"^model\.norm\.": "transformer.encoder.final_layernorm.",
    r"^model\.layers\.": "transformer.encoder.layers.",
    r"^lm_head\.": "transformer.output_layer.",
    r"\.self_attn\.o_proj\.": ".self_attention.dense.",
    r"\.mlp\.gate_up_proj\.": ".mlp.dense_h_to_4h.",
    r"\.mlp\.down_proj\.": ".mlp.dense_4h_to_h.",
}


def _renamed(state: State, names: dict[str, str]) -> State:
    found = {}
    for name, tensor in state.items():
        for today, old in names.items():
            name = re.sub(today, old, name)
        found[name] = tensor
    return found


def _stacked(state: State, into: str) -> State:
    """Rows of query, key and value one below the other."""
    found = {}
    for name, tensor in state.items():
        if ".self_attn.q_proj." in name:
            parts = [state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            found[name.replace("self_attn.q_proj", into)] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            found[name] = tensor
    return found


def _tables(family: str, config: dict[str, Any]) -> State:
    layers = int(config.get("num_hidden_layers") or config.get("num_layers") or config.get("n_layer") or 0)
    seen = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
    if family in ("baichuan_7b", "internlm", "xverse"):
        size = config["hidden_size"] // config["num_attention_heads"]
        return {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": _frequencies(size) for i in range(layers)}
    if family == "chatglm":
        size = config["hidden_size"] // config["num_attention_heads"] // 2
        names = [f"transformer.layers.{i}.attention.rotary_emb.inv_freq" for i in range(layers)]
        return {name: _frequencies(size) for name in names}
    if family == "chatglm2":
        return {"transformer.rotary_pos_emb.inv_freq": _frequencies(config["kv_channels"] // 2)}
    if family == "moss":
        return {f"transformer.h.{i}.attn.causal_mask": seen.clone() for i in range(layers)}
    if family == "pangu":
        found: State = {}
        for i in range(layers):
            found[f"transformer.h.{i}.attn.bias"] = seen.to(torch.uint8)
            found[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        return found
    return {}


def _frequencies(size: int) -> Tensor:
    return 10000 ** -(torch.arange(0, size, 2) / size)
