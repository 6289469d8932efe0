"""Marks in the text that tell a model where its prompt ends: of encoder-decoders and of prefix language models.

Such models read the whole prompt both ways, and find its end by special tokens: an encoder-decoder by the one
that its decoder begins with, a prefix language model (`Family.reads_marks`) by one such as ``<sop>``. Their chat templates write the marks; here is the
template of encoder-decoders, and what stands around a prompt that is bare text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

from espalier.models.encoder_decoder import is_encoder_decoder
from espalier.models.legacy.families import family_of, native_family
from espalier.models.legacy.family import Family
from espalier.rendering import rendered

_HERE = "\u2060PROMPT\u2060"

_TEMPLATE = (
    "{{% set answered = messages[-1]['role'] == 'assistant' %}}"
    "{{% set asked = messages[:-1] if answered else messages %}}"
    "{before}{{{{ asked | map(attribute='content') | join('\n') }}}}{end}"
    "{{% if answered %}}{start}{before}{{{{ messages[-1]['content'] }}}}{end}"
    "{{% elif add_generation_prompt %}}{start}{before}{{% endif %}}"
)


def give_template(tokenizer: Any, config: dict[str, Any]) -> None:
    """Give the tokenizer of an encoder-decoder the chat template that its rows need, unless it has it already.

    ``question</s><pad>answer</s>`` for T5, ``<s>question</s></s><s>answer</s>`` for BART: what its tokenizer puts
    around a text is put around both, and between them stands the token that the decoder begins with. The turns
    of a longer conversation are lines of the question.

    Args:
        tokenizer: changed in place.
        config: the model's config.json.
    """
    start = config.get("decoder_start_token_id")
    start = tokenizer.pad_token_id if start is None else start
    around = tokenizer("").input_ids
    before, end = around[:-1], around[-1:] or [tokenizer.eos_token_id]
    names = {
        name: "".join(tokenizer.convert_ids_to_tokens(ids))
        for name, ids in (("before", before), ("end", end), ("start", [start]))
    }
    if not _writes(tokenizer, names["end"] + names["start"]):
        tokenizer.chat_template = _TEMPLATE.format(**names)


def _writes(tokenizer: Any, marks: str) -> bool:
    """Whether the tokenizer's own chat template puts these before an answer."""
    if not tokenizer.chat_template:
        return False
    asked = [{"role": "user", "content": _HERE}]
    return marks in rendered(tokenizer, asked, add_generation_prompt=True)


def config_of_encoder_decoder(source: str | Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration of a folder, a hub id or a new model, where it is an encoder-decoder's; else None."""
    if not isinstance(source, str):
        kind = str(source.get("model_type"))
        # What is said may be wrong; that is for whoever makes the model to say.
        config = {**CONFIG_MAPPING[kind]().to_dict(), **source} if kind in CONFIG_MAPPING else {}
    elif Path(source).exists() and not (Path(source) / "config.json").is_file():
        return None
    else:
        try:
            config, _ = PreTrainedConfig.get_config_dict(source)
        except OSError:  # a tokenizer alone, or what the model's own loading will complain of
            return None
    return config if config.get("is_encoder_decoder") else None


def reader_of_marks(source: str | Mapping[str, Any]) -> Family | None:
    """The family of a folder, a hub id or a new model's configuration, where it reads marks; else None."""
    config: Mapping[str, Any] = source if not isinstance(source, str) else {}
    if isinstance(source, str) and not (
        Path(source).exists() and not (Path(source) / "config.json").is_file()
    ):
        try:
            config, _ = PreTrainedConfig.get_config_dict(source)
        except OSError:  # the model's own loading will say what is wrong
            return None
    family = family_of(config) or native_family(str(config.get("model_type")))
    return family if family is not None and family.reads_marks else None


def around_prompt(lm: nn.Module, tokenizer: Any) -> tuple[str, str]:
    """What a bare prompt needs before and behind it, so that this model answers it; mostly nothing."""
    if not needs_marks(lm):
        return "", ""
    asked = [{"role": "user", "content": _HERE}]
    whole = rendered(tokenizer, asked, add_generation_prompt=True)
    before, _, behind = whole.partition(_HERE)
    return before, behind


def marked(prompt: str, around: tuple[str, str]) -> str:
    """The prompt with its marks, or as it is where it has them."""
    before, behind = around
    return prompt if not behind or behind in prompt else before + prompt + behind


def needs_marks(lm: nn.Module) -> bool:
    """Whether the model finds its prompt's end by marks."""
    config: Any = lm.config
    family = native_family(config.model_type)
    return is_encoder_decoder(lm) or (family is not None and family.reads_marks)
