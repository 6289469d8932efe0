"""MOSS-moon: CodeGen of transformers, names included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CodeGenConfig, CodeGenForCausalLM, PreTrainedTokenizerFast

from espalier.models.legacy.conversion import Conversion, Named, needed, refuse, taken, token_ids
from espalier.models.legacy.family import Family, VocabularyFiles, read_json
from espalier.models.legacy.tokenizers.build import byte_level

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<eom>\n"
    "{% elif m['role'] == 'user' %}<|Human|>: {{ m['content'] }}<eoh>\n<|MOSS|>: "
    "{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
)


def moss(old: Mapping[str, Any]) -> Conversion:
    """The configuration keys keep their names too."""
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


def tokenizer(files: VocabularyFiles) -> PreTrainedTokenizerFast | None:
    """GPT-2's files, with the special tokens of added_tokens.json by their ids."""
    own = files.tokenizer_class.startswith("Moss") or files.model_type == "moss"
    if not own or not files.named("vocab.json", "merges.txt"):
        return None
    added = read_json(files.folder / "added_tokens.json")
    names = {"bos_token": "<|endoftext|>", "eos_token": "<eom>", "pad_token": "<eom>"}
    return byte_level(files.folder, sorted(added, key=added.__getitem__), names, TEMPLATE)


FAMILIES = (Family(name="moss", model_types=("moss",), convert=moss, tokenizer=tokenizer),)
