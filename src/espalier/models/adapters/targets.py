"""Which linear layers get an adapter: by name, by path, by pattern, all of them, or what suits the family."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from espalier.errors import UserError
from espalier.models.legacy.families import families

QUERY_VALUE = ("q_proj", "v_proj")
FUSED = ("query_key_value",)
AUTO: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2"),
            *(
                "gemma3_text",
                "phi",
                "cohere",
                "cohere2",
                "olmo",
                "olmo2",
                "stablelm",
                "starcoder2",
                "internlm3",
            ),
            *("glm", "glm4", "opt", "gptj"),
        ),
        QUERY_VALUE,
    ),
    **dict.fromkeys(("bloom", "falcon", "gpt_neox"), FUSED),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    "codegen": ("qkv_proj",),
    "phi3": ("qkv_proj",),
    "mpt": ("Wqkv",),
    **dict.fromkeys(("t5", "mt5", "umt5"), ("q", "v")),
    **dict.fromkeys(("bart", "mbart", "pegasus"), QUERY_VALUE),
    "ctrl": ("Wq", "Wv"),
    "rwkv": ("key", "value", "receptance"),
}
"""`lora_target: auto`: the layers that make queries and values (Hu et al. 2021, table 5), by model type of transformers.

Old families have theirs in `Family.lora_targets`."""

ONCE_FUSED = ("W_pack", "query_key_value", "c_attn", "qkv_proj", "Wqkv")
"""Names of a projection to queries, keys and values in one, which some conversions have cut in three."""

_INNER = ("mlp", "feed_forward", "ffn")
_INNER_LAST = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "wo")
_INNER_OR_OUTER = ("c_proj", "out_proj", "dense", "value", "w2")
"""Names of layers back to the hidden width, which mean the feed-forward part only inside of one."""


def linear_layers(lm: nn.Module) -> list[str]:
    """Full names of the linear layers, in order, the head left out."""
    head = lm.get_output_embeddings()  # type: ignore[operator]
    return [name for name, m in lm.named_modules() if is_linear(m) and m is not head]


def linear_names(lm: nn.Module) -> list[str]:
    """Names (last parts) of the linear layers, the head left out."""
    return sorted({name.rsplit(".", 1)[-1] for name in linear_layers(lm)})


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix of weights: transformers' Conv1D is one, with its weight the other way round."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def vocabulary_layers(lm: nn.Module) -> list[str]:
    """Full names of the embeddings and of the head, as far as an adapter of theirs can be merged: plain tables that no
    code of the model's own reads in another way."""
    model: Any = lm
    if model.config.is_encoder_decoder:  # one table under several names
        return []
    plain = {model.get_input_embeddings(): nn.Embedding, model.get_output_embeddings(): nn.Linear}
    return [name for name, m in lm.named_modules() if type(m) is plain.get(m)]


def chosen_layers(lm: nn.Module, wanted: Sequence[str], *, vocabulary: bool = False) -> list[str]:
    """Full names of the layers that are meant.

    Args:
        lm: a causal language model without an adapter.
        wanted: ``["all"]``, ``["auto"]``, or names (``q_proj``), ends of paths (``layers.0.self_attn.q_proj``) and
            regular expressions over whole paths; ``all`` also beside others.
        vocabulary: whether the embeddings and the head may be named, too.

    Raises:
        UserError: one of them matches nothing; with what exists.
    """
    exists, ends = linear_layers(lm), vocabulary_layers(lm) if vocabulary else []
    if list(wanted) == ["all"]:
        return exists
    if list(wanted) == ["auto"]:
        config: Any = lm.config
        known = _auto(config.model_type)
        wanted = known if known and all(_matching(name, exists) for name in known) else linear_names(lm)
    chosen: set[str] = set()
    missing = []
    for item in wanted:
        matched = exists if item == "all" else _matching(item, exists) or _matching(item, ends)
        if not matched and item in ONCE_FUSED:
            matched = [name for part in ("q_proj", "k_proj", "v_proj") for name in _matching(part, exists)]
        if not matched:
            missing.append(item)
        chosen.update(matched)
    if missing:
        further = f"; the embeddings and the head are {', '.join(ends)}" if ends else ""
        raise UserError(
            f"lora_target: {', '.join(missing)} matches no linear layer{_why_not(lm, missing, vocabulary)}. This model has "
            f"{', '.join(linear_names(lm))}; whole paths look like {exists[0]}{further}."
        )
    return [name for name in (*exists, *ends) if name in chosen]


def _why_not(lm: nn.Module, missing: Sequence[str], vocabulary: bool) -> str:
    """Why the embeddings or the head, which are asked for, cannot have an adapter; nothing where they are not."""
    model: Any = lm
    named = {module: name for name, module in lm.named_modules()}
    ends = [named.get(end, "") for end in (model.get_input_embeddings(), model.get_output_embeddings())]
    if not any(_matching(item, [end for end in ends if end]) for item in missing):
        return ""
    if not vocabulary:
        return ": embeddings and head get LoRA only (finetuning_type: lora without pissa_init)"
    return ": what this model reads its embeddings or its head by is no plain table (modules_to_save trains them whole)"


def _auto(model_type: str) -> tuple[str, ...]:
    """What suits the family; () where nothing is known."""
    own = [family.lora_targets for family in families() if model_type in family.lora_targets]
    return own[0][model_type] if own else AUTO.get(model_type, ())


def _matching(item: str, names: Sequence[str]) -> list[str]:
    plain = [name for name in names if name == item or name.endswith("." + item)]
    if plain:
        return plain
    try:
        return [name for name in names if re.fullmatch(item, name)]
    except re.error as error:
        raise UserError(
            f"lora_target: {item} matches no linear layer, and is no regular expression ({error})."
        ) from error


def shortest(chosen: Sequence[str], exists: Sequence[str]) -> list[str]:
    """The chosen layers as last parts of names where these mean no other layers, else as whole names."""
    last = {name.rsplit(".", 1)[-1] for name in chosen}
    meant = [name for name in exists if name.rsplit(".", 1)[-1] in last]
    return sorted(last) if meant == list(chosen) else list(chosen)


def keys_values_inner(lm: nn.Module) -> tuple[list[str], list[str]]:
    """What IA3 scales in each block (Liu et al. 2022): layers of keys and values, and those after the inner activation.

    Raises:
        UserError: an architecture without such names; `lora_target` has to say.
    """
    outer: list[str] = []
    for names in (("k_proj", "v_proj"), *((name,) for name in ONCE_FUSED), ("Wk", "Wv"), ("k", "v")):
        outer = [n for name in names for n in _matching(name, linear_layers(lm))]
        if outer:
            break
    inner = [name for name in linear_layers(lm) if is_inner(name)]
    if not outer or not inner:
        raise UserError(
            "finetuning_type: ia3 does not know which layers of this model make keys and values, and which end its "
            f"feed-forward parts. Name them in lora_target, out of {', '.join(linear_names(lm))}."
        )
    return outer, inner


def is_inner(name: str) -> bool:
    """Whether IA3 scales the input of this layer (the inner activations of a feed-forward part) and not its output."""
    *parents, last = name.split(".")
    return last in _INNER_LAST or (last in _INNER_OR_OUTER and any(part in _INNER for part in parents[-2:]))
