"""All old families, and questions to them: whose is this config.json, and whose is this architecture of ours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from espalier.disk.reading import object_or_nothing
from espalier.models.legacy.conversion import Conversion
from espalier.models.legacy.family import Family, VocabularyFiles

NAMES = (
    "pangu",
    "glm",
    "chatglm",
    "qwen",
    "chatglm2",
    "internlm",
    "baichuan",
    "aquila",
    "moss",
    "xverse",
    "rwkv",
)
"""Modules of this folder with `FAMILIES`, in the order in which they are asked."""


@cache
def families() -> tuple[Family, ...]:
    """Every family, in the order in which they are asked."""
    modules = (import_module(f"espalier.models.legacy.{name}") for name in NAMES)
    return tuple(family for module in modules for family in module.FAMILIES)


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family whose original code wrote this config.json; None where transformers reads it itself.

    Args:
        config: a config.json, as read.
    """
    kind = str(config.get("model_type", "")).lower()
    return next((f for f in families() if kind in f.model_types and f.owns(config)), None)


def conversion_of(config: Mapping[str, Any]) -> Conversion:
    """How to convert the checkpoint of this config.json, whose `family_of` is not None."""
    family = family_of(config)
    assert family is not None
    return family.convert(config)


def native_family(model_type: str) -> Family | None:
    """The family of an architecture of ours; None for those of transformers."""
    return next((f for f in families() if f.native_type == model_type), None)


def register(folder: Path) -> None:
    """Make the architecture of this folder's config.json known to transformers' Auto classes, where it is ours.

    A folder that `espalier convert` has written carries a model type with a prefix of ours, because some of the old
    names mean other models today ("glm"). No code lies in the folder.
    """
    # Whoever reads the folder next says what is wrong with a file that cannot be read.
    kind = object_or_nothing(folder / "config.json").get("model_type")
    family = native_family(str(kind))
    if family is None:
        return
    native: Any = family.native
    AutoConfig.register(kind, native.config_class, exist_ok=True)
    AutoModelForCausalLM.register(native.config_class, native, exist_ok=True)


def legacy_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder with the original files of an old family; None for any other folder.

    Folders that transformers reads by itself (a tokenizer.json, Llama's classes, ...) are left alone.

    Raises:
        UserError: the vocabulary file is broken, or a library for it is missing.
    """
    if (folder / "tokenizer.json").is_file() or not folder.is_dir():
        return None
    files = VocabularyFiles.of(folder)
    made = (family.tokenizer(files) for family in families())
    return next((tokenizer for tokenizer in made if tokenizer is not None), None)
