"""ChatGLM2, ChatGLM3 and GLM-4 in their first layout: Glm of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GlmConfig, GlmForCausalLM, PreTrainedTokenizerFast

from espalier.errors import UserError
from espalier.models.legacy.conversion import Conversion, Named, needed, refuse, taken, thirds, token_ids
from espalier.models.legacy.family import Family, VocabularyFiles
from espalier.models.legacy.tokenizers import tiktoken_model
from espalier.models.legacy.tokenizers.build import ids_behind, put_around, wrapped
from espalier.models.legacy.tokenizers.sentencepiece_file import is_sentencepiece, read_model
from espalier.models.legacy.tokenizers.sentencepiece_model import fast_tokenizer

_NAMES = {
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
        for old_part, new_part in _NAMES.items():
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


ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
ROUNDS_TEMPLATE = (
    "[gMASK]<sop>{% set round = namespace(n=1) %}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '' if loop.first else '\n\n' }}"
    "[Round {{ round.n }}]\n\n问：{{ m['content'] }}\n\n答：{% set round.n = round.n + 1 %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
"""ChatGLM2: rounds from 1 on, an empty line between all parts; the last answer ends with ``</s>``."""
_WITH_TOOLS = "Answer the following questions as best as you can. You have access to the following tools:"
ROLES_TEMPLATE = (
    "[gMASK]<sop>{% if tools %}{% set listed = namespace(tools=[]) %}"
    "{% for t in tools %}{% set listed.tools = listed.tools + [t['function'] or t] %}{% endfor %}<|system|>\n "
    "{{ messages[0]['content'] if messages[0]['role'] == 'system' else '" + _WITH_TOOLS + "' }}\n"
    "{{ listed.tools | tojson(indent=4) }}{% endif %}"
    "{% for m in messages %}{% if m['tool_calls'] %}"
    "{% if m['content'] %}<|assistant|>\n {{ m['content'] }}{% endif %}"
    "{% for c in m['tool_calls'] %}<|assistant|>{{ c['function']['name'] }}\n ```python\ntool_call("
    "{% for key, value in c['function']['arguments'].items() %}{{ '' if loop.first else ', ' }}{{ key }}="
    "{{ '%r' | format(value) }}{% endfor %})\n```{% endfor %}"
    "{% elif not (tools and loop.first and m['role'] == 'system') %}<|{{ m['role'] }}|>\n {{ m['content'] }}{% endif %}"
    "{% endfor %}{{ ('<|assistant|>' if tools else '<|assistant|>\n ') if add_generation_prompt else '' }}"
)
"""ChatGLM3: a role's line may hold a tool's name, and then the call is Python. With tools the model writes that line
itself, so an answer begins behind the role."""


def tokenizer(files: VocabularyFiles) -> PreTrainedTokenizerFast | None:
    """A tokenizer.model in a folder of theirs; GLM-4's is in tiktoken's form."""
    own = files.tokenizer_class.startswith("ChatGLM") or "chatglm" in files.model_type
    if not own or not files.named("tokenizer.model"):
        return None
    file = files.folder / "tokenizer.model"
    return (_sentencepiece if is_sentencepiece(file) else _glm_4)(file, files.settings)


def _sentencepiece(file: Path, settings: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """``[gMASK] <sop>`` A, and ChatGLM3's marks of roles.

    The original has its special tokens by their ids alone, and calls two of them "sop" and "eop", which are in
    words ("people"). Here templates must write them, so these two have brackets.
    """
    model = read_model(file)
    names = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
    third = any(role in json.dumps(dict(settings)) for role in ROLES)
    tokenizer = fast_tokenizer(model, special=ids_behind(model, [*names, *(ROLES if third else ())]))
    put_around(tokenizer, "[gMASK] <sop> $A", "[gMASK] <sop> $A $B:0 </s>", ["[gMASK]", "<sop>", "</s>"])
    ends = {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    template = ROLES_TEMPLATE if third else ROUNDS_TEMPLATE
    return wrapped(tokenizer, **ends, padding_side="left", chat_template=template)


def _glm_4(file: Path, settings: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """GLM-4's tiktoken file; its special tokens are those of tokenizer_config.json."""
    ranks = tiktoken_model.read_ranks(file)
    listed = settings.get("added_tokens_decoder") or {}
    special = {token["content"]: int(number) for number, token in listed.items()}
    if "<|endoftext|>" not in special:
        raise UserError(
            f"{file.parent / 'tokenizer_config.json'}: lists no special tokens (added_tokens_decoder). "
            "Copy GLM-4's own file here."
        )
    tokenizer = tiktoken_model.fast_tokenizer(
        ranks, pattern=tiktoken_model.GLM_4, special=special, compose=False
    )
    begin = "[gMASK] <sop>" if "<sop>" in special else ""
    put_around(tokenizer, f"{begin} $A", f"{begin} $A $B:0", begin.split())
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return wrapped(tokenizer, **ends, padding_side="left", chat_template=settings.get("chat_template"))


FAMILIES = (Family(name="chatglm2", model_types=("chatglm",), convert=chatglm2, tokenizer=tokenizer),)
