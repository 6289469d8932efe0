"""What is to be known about a model folder: sizes, family, tokens, context, quantisation, adapter, layout.

Without the probe no weights are read: the architecture is built without memory (torch's meta device) and types and
bytes come from the headers of the safetensors files.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from espalier.commands.inspect.modules import Node, module_tree
from espalier.errors import UserError
from espalier.models import load_adapted
from espalier.models.adapters import adapter as adapters
from espalier.models.legacy import checkpoint
from espalier.models.legacy.families import conversion_of, register
from espalier.models.open import find_tokenizer, open_model
from espalier.models.probe import probe
from espalier.models.quantise.methods import check_readable, described, entry_of
from espalier.models.quantise.sizes import disk_bytes, held_bytes
from espalier.models.quantise.turn import number_of_weights
from espalier.models.remote_code import wants_code
from espalier.models.saved import read_scalar_head

_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "U8": "uint8",
          "I32": "int32", "I64": "int64"}  # fmt: skip


def facts_of(
    name: str, *, with_probe: bool, trust_remote_code: bool, allow_pickle: bool
) -> tuple[dict[str, Any], Node]:
    """Facts by name, and the modules.

    Raises:
        UserError: the folder cannot be read as a model.
    """
    is_adapter = (Path(name) / "adapter_config.json").is_file()
    base = load_adapted.base_of(name) if is_adapter else name
    if with_probe:
        lm = _whole(name, base, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    else:
        lm = skeleton(base, trust_remote_code=trust_remote_code)
    settings: Any = lm.config
    entry = entry_of(base)
    facts: dict[str, Any] = {
        "architecture": type(_inner(lm)).__name__,
        "family": settings.model_type,
        "parameters": number_of_weights(lm),
        "disk_bytes": disk_bytes(name),
        "memory_bytes": held_bytes(lm) if with_probe else stored_bytes(base),
        "quantisation": None if entry is None else described(entry),
        **_context(settings),
        "vocab_size": settings.get_text_config().vocab_size,
        "tied_embeddings": bool(settings.get_text_config().tie_word_embeddings),
        **(_adapter(name, lm) if is_adapter else {}),
        **_tokenizer(find_tokenizer(name, trust_remote_code=trust_remote_code)),
        "scalar_head": read_scalar_head(name, allow_pickle=allow_pickle) is not None,
        "linear_layers": _linear(_inner(lm)),
    }
    if with_probe:
        traits = probe(lm)
        facts["layout"] = "padded" if traits.method == "padded" else "tree"
        facts["layout_reason"] = traits.reason
    else:
        facts["layout_reason"] = "not probed (--no-probe): the weights were not loaded"
    facts["parts"] = _parts(lm)
    return facts, module_tree(lm)


def _whole(name: str, base: str, *, trust_remote_code: bool, allow_pickle: bool) -> nn.Module:
    """With the adapter on top and not merged, so that it can be seen."""
    lm = open_model(
        base,
        device="cpu",
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        rope_scaling=None if name == base else adapters.trained_scaling(name),
    ).lm
    return lm if name == base else adapters.load_adapter(lm, name, trainable=True)


def _inner(lm: Any) -> nn.Module:
    return lm.get_base_model() if adapters.is_adapted(lm) else lm  # type: ignore[no-any-return]


def _linear(lm: nn.Module) -> list[str]:
    """Names of the linear layers, by their own names where an adapter sits on them."""
    names = [name for name in adapters.linear_layers(lm) if ".lora_" not in name]
    return sorted({name.removesuffix(".base_layer").rsplit(".", 1)[-1] for name in names})


def skeleton(name: str, *, trust_remote_code: bool) -> nn.Module:
    """The architecture that a model's files name, or those of the model below an adapter, without its numbers.

    Raises:
        UserError: they name none that can be built.
    """
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        return skeleton(load_adapted.base_of(name), trust_remote_code=trust_remote_code)
    check_readable(name)
    old = checkpoint.config_of(folder)
    try:
        if old is not None:
            made = conversion_of(old)
            kind: Any = made.model
            with torch.device("meta"):
                return kind(made.config)  # type: ignore[no-any-return]
        register(folder)
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=trust_remote_code)  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError) as error:
        if code := wants_code(error, Path(name)):
            raise UserError(code) from error
        first = str(error).strip().split("\n")[0][:300]
        raise UserError(f"{name}: config.json names no model that can be built ({first}).") from error


def stored_bytes(name: str) -> dict[str, int]:
    """Bytes by type, from the headers of the files."""
    sizes: Counter[str] = Counter()
    for file in sorted(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                part = tensors.get_slice(key)
                kind = _TYPES.get(part.get_dtype(), part.get_dtype())
                numbers = 1
                for size in part.get_shape():
                    numbers *= size
                width = 1 if kind in ("int8", "uint8") else getattr(torch, kind, torch.float32).itemsize
                sizes[kind] += numbers * width
    return dict(sizes)


def _context(settings: Any) -> dict[str, Any]:
    text = settings.get_text_config().to_dict()
    length = text.get("max_position_embeddings") or text.get("n_positions") or text.get("seq_length")
    rope = dict(text.get("rope_parameters") or {})
    scaled = rope if rope.get("rope_type", "default") != "default" else None
    return {
        "context_length": length,
        "rope_theta": rope.get("rope_theta"),
        "rope_scaling": scaled,
        "sliding_window": text.get("sliding_window") if text.get("use_sliding_window", True) else None,
    }


def _adapter(name: str, lm: nn.Module) -> dict[str, Any]:
    settings = json.loads((Path(name) / "adapter_config.json").read_text("utf-8"))
    shown = {
        key: settings[key]
        for key in ("peft_type", "r", "lora_alpha", "use_dora", "use_rslora")
        if key in settings
    }
    facts: dict[str, Any] = {
        "base": load_adapted.base_of(name),
        "adapter": {k: v for k, v in shown.items() if v not in (None, False)},
    }
    if adapters.is_adapted(lm):
        facts["trainable_parameters"] = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    else:
        facts["trainable_parameters"] = sum(stored_bytes(name).values()) // 4 or None
    return facts


def _tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """Special tokens with their ids, and whose template a chat takes."""
    if tokenizer is None:
        return {"special_tokens": None, "template": None}
    special = {
        key.removesuffix("_token"): f"{token} = {tokenizer.convert_tokens_to_ids(str(token))}"
        for key, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }
    return {
        "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens",
        "special_tokens": special,
        "template": "the tokenizer's own" if tokenizer.chat_template else "simple (it has none of its own)",
    }


def _parts(lm: nn.Module) -> dict[str, int]:
    """Numbers by the names of parameters, with a star for every block's number."""
    numbers: Counter[str] = Counter()
    for key, parameter in lm.named_parameters():
        numbers[".".join("*" if part.isdigit() else part for part in key.split("."))] += parameter.numel()
    return dict(numbers)
