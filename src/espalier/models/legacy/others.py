"""ChatGLM2, ChatGLM3 and GLM-4 as Glm, MOSS as CodeGen, and RWKV's own names as Rwkv of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CodeGenConfig, CodeGenForCausalLM, GlmConfig, GlmForCausalLM

from espalier.models.legacy.conversion import Conversion, Named, needed, refuse, taken, thirds, token_ids

_GLM_NAMES = {
    "transformer.embedding.word_embeddings.": "model.embed_tokens.",
    "transformer.encoder.final_layernorm.": "model.norm.",
    "transformer.output_layer.": "lm_head.",
    "transformer.encoder.layers.": "model.layers.",
    ".self_attention.dense.": ".self_attn.o_proj.",
    ".mlp.dense_h_to_4h.": ".mlp.gate_up_proj.",
    ".mlp.dense_4h_to_h.": ".mlp.down_proj.",
}


def chatglm2(old: Mapping[str, Any]) -> Conversion:
    """ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B in their first layout, grouped queries or not."""
    refuse(
        old,
        {
            "rmsnorm": True,
            "post_layer_norm": True,
            "apply_residual_connection_post_layernorm": False,
            "add_bias_linear": False,
            "pre_seq_len": None,
            "quantization_bit": 0,
        },
    )
    heads = int(needed(old, "num_attention_heads"))
    grouped = bool(old.get("multi_query_attention", False))
    groups = int(old.get("multi_query_group_num") or 1) if grouped else heads
    size = int(old.get("kv_channels") or int(needed(old, "hidden_size")) // heads)
    settings: dict[str, Any] = {
        **taken(old, "hidden_size"),
        **token_ids(old, eos_token_id=2, pad_token_id=0),
        "vocab_size": needed(old, "padded_vocab_size", "vocab_size"),
        "intermediate_size": needed(old, "ffn_hidden_size"),
        "num_hidden_layers": needed(old, "num_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": size,
        "rms_norm_eps": old.get("layernorm_epsilon", 1e-5),
        "max_position_embeddings": old.get("seq_length", 2048),
        "attention_bias": bool(old.get("add_qkv_bias", False)),
        "rope_parameters": {**_rotary(old), "partial_rotary_factor": 0.5},
    }

    def place(name: str, tensor: Tensor) -> Named:
        if name.endswith("rotary_pos_emb.inv_freq"):
            return []
        for old_part, new_part in _GLM_NAMES.items():
            name = name.replace(old_part, new_part)
        if ".self_attention.query_key_value." not in name:
            return [(name, tensor)]
        if grouped:
            parts = thirds(tensor, heads * size, groups * size, groups * size)
        else:  # without groups each head's query, key and value stand together
            parts = per_head(tensor, heads)
        names = (name.replace("self_attention.query_key_value", f"self_attn.{x}_proj") for x in "qkv")
        return list(zip(names, parts, strict=True))

    return Conversion(GlmConfig(**settings), GlmForCausalLM, place)


def _rotary(old: Mapping[str, Any]) -> dict[str, Any]:
    """ChatGLM2-6B-32k divides positions by `rope_ratio`; ChatGLM3-32k and GLM-4 multiply the base with it."""
    ratio = float(old.get("rope_ratio") or 1)
    if ratio != 1 and "chatglm2" in str(old.get("_name_or_path", "")).lower():
        return {"rope_type": "linear", "factor": ratio, "rope_theta": 10000.0}
    return {"rope_type": "default", "rope_theta": 10000.0 * ratio}


def per_head(tensor: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Rows that stand as [query | key | value] of each head, as all queries, all keys, all values."""
    grouped = tensor.view(heads, 3, tensor.shape[0] // heads // 3, *tensor.shape[1:])
    return tuple(grouped[:, i].reshape(-1, *tensor.shape[1:]).contiguous() for i in range(3))


def moss(old: Mapping[str, Any]) -> Conversion:
    """MOSS-moon is CodeGen, names included."""
    refuse(old, {"wbits": 32})
    settings = taken(
        old,
        *("vocab_size", "n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "rotary_dim", "n_inner"),
        *("activation_function", "layer_norm_epsilon", "initializer_range"),
    )
    for name in ("n_embd", "n_layer", "n_head"):
        needed(old, name)
    ids = token_ids(old, bos_token_id=106028, eos_token_id=106068)
    if ids["pad_token_id"] is None:
        ids["pad_token_id"] = ids["eos_token_id"]

    def place(name: str, tensor: Tensor) -> Named:
        return [] if name.endswith((".causal_mask", ".attn.bias", ".masked_bias")) else [(name, tensor)]

    return Conversion(CodeGenConfig(**settings, **ids), CodeGenForCausalLM, place)
