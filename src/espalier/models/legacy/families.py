"""Which old family a config.json belongs to, and who converts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from espalier.models.legacy.conversion import Conversion


def family_of(config: Mapping[str, Any]) -> str | None:
    """The family whose original code wrote this config.json; None where transformers reads it itself.

    Args:
        config: a config.json, as read.
    """
    kind = str(config.get("model_type", "")).lower()
    if kind in ("gpt_pangu", "pangu"):
        return "pangu"
    if kind == "glm":
        old = {"block_position_encoding", "max_sequence_length"} & set(config)
        return "glm" if old else None
    if kind == "chatglm":
        old = {"position_encoding_2d", "inner_hidden_size"} & set(config)
        return "chatglm" if old else "chatglm2"
    if kind == "baichuan":
        return _baichuan(config)
    if kind in ("qwen", "internlm", "moss", "xverse", "aquila", "rwkv_original"):
        return kind
    return None


def _baichuan(config: Mapping[str, Any]) -> str:
    if "BaiChuanForCausalLM" in (config.get("architectures") or []):
        return "baichuan_7b"
    # The weights do not show whether the head is normalised; these are the marks of the second generation.
    second = (
        "z_loss_weight" in config
        or config.get("vocab_size") == 125696
        or config.get("tokenizer_class") == "BaichuanTokenizer"
    )
    if "max_position_embeddings" in config:
        return "baichuan2_7b" if second else "baichuan_7b"
    return "baichuan2_13b" if second else "baichuan_13b"


def conversion_of(config: Mapping[str, Any]) -> Conversion:
    """How to convert the checkpoint of this config.json, whose `family_of` is not None."""
    family = family_of(config)
    assert family is not None
    return _converters()[family](config)


def _converters() -> dict[str, Callable[[Mapping[str, Any]], Conversion]]:
    from espalier.models.legacy import baichuan, chatglm, glm, llama_like, others, pangu, qwen, rwkv

    return {
        "aquila": llama_like.llama_like,
        "internlm": llama_like.llama_like,
        "xverse": llama_like.llama_like,
        "baichuan_7b": llama_like.baichuan_7b,
        "chatglm2": others.chatglm2,
        "moss": others.moss,
        "baichuan_13b": baichuan.baichuan_alibi,
        "baichuan2_7b": baichuan.baichuan2_rotary,
        "baichuan2_13b": baichuan.baichuan2_alibi,
        "pangu": pangu.pangu,
        "qwen": qwen.qwen,
        "rwkv_original": rwkv.rwkv,
        "chatglm": chatglm.chatglm,
        "glm": glm.glm,
    }
