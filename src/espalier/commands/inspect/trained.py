"""How many numbers a stage will train, by part, before any weight is read: the model is built without memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from espalier.commands.inspect.model_facts import skeleton
from espalier.config.option_set import OptionSet
from espalier.config.options import AdapterOptions, LoraOptions, ModelOptions, VirtualTokenOptions
from espalier.errors import UserError
from espalier.models import load
from espalier.models.adapters import adapter as adapters
from espalier.models.adapters.counts import Count, counted
from espalier.models.adapters.freezing import freeze_head
from espalier.stages.adapting import frozen_part, new_adapter
from espalier.stages.setup import Setup
from espalier.stages.stage import Stage

Counts = Mapping[str, Count]


def trained_parameters(stage: Stage, setup: Setup, options: OptionSet, start: ModelOptions) -> Counts:
    """Numbers of the model that a stage trains (of PPO: the policy), by part; see `counts.PARTS`.

    Args:
        setup: of the stage, with its tokenizer.
        options: the stage's own.
        start: those of the stage at which its model begins, where earlier ones have made it.

    Raises:
        UserError: the model cannot be built from what is known of it.
    """
    base = start.model_name_or_path
    if base is not None and base.startswith("run:"):
        raise UserError(f"{base} is not made yet")
    lm = bare_model(setup, start)
    rows = int(lm.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    if len(setup.tokenizer) > rows:
        lm.resize_token_embeddings(len(setup.tokenizer), mean_resizing=False)  # type: ignore[operator]
    known = len(setup.tokenizer) if base is None else setup.known_tokens(base, rows)
    saved = _trained_on(options, base)
    if saved is not None:
        lm.requires_grad_(False)
    elif options[AdapterOptions].finetuning_type not in ("full", "freeze"):
        # How an adapter begins changes values and no number, and needs weights.
        plain = options.replaced(replace(options[VirtualTokenOptions], prompt_init_text=None))
        plain = plain.replaced(replace(options[LoraOptions], pissa_init=False))
        lm = new_adapter(lm, plain, setup.tokenizer, range(known, len(setup.tokenizer)))
        for key, parameter in lm.named_parameters():
            if "ranknum" in key:
                parameter.requires_grad_(False)  # AdaLoRA's count of ranks; without memory PEFT forgets this
    else:
        frozen_part(lm, options[AdapterOptions])
    if not stage.answers_trained:
        freeze_head(lm)
    found = counted(lm)
    if saved is not None:
        numbers = _numbers(saved)
        found["adapters"] = Count(numbers, numbers)
    if (
        not stage.answers_trained
    ):  # a reward model: a number for an answer, and no use for the head of its own
        width = load.hidden_size(lm)
        found["head"] = Count(width, width + found.get("head", Count()).total)
    return found


def in_words(parts: Counts) -> str:
    """One line.

    >>> in_words({"blocks": Count(30, 100), "head": Count(20, 20)})
    '50 of 120 parameters are trained: blocks 30 of 100, head 20 of 20'
    """
    whole = sum(parts.values(), Count())
    each = ", ".join(f"{name} {part.trained:,} of {part.total:,}" for name, part in parts.items())
    return f"{whole.trained:,} of {whole.total:,} parameters are trained: {each}"


def as_json(parts: Counts) -> dict[str, Any]:
    return {name: {"trained": part.trained, "all": part.total} for name, part in parts.items()}


def bare_model(setup: Setup, start: ModelOptions) -> nn.Module:
    """The model that a stage begins with, without its numbers (torch's meta device)."""
    if start.model_name_or_path is not None:
        return skeleton(start.model_name_or_path, trust_remote_code=start.trust_remote_code)
    ids = {key: getattr(setup.tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return load.new_lm(load.read_config(start.model_config or {}), len(setup.tokenizer), ids, weights=False)


def _trained_on(options: OptionSet, base: str | None) -> str | None:
    """The saved adapter that is trained on, in place of a new one."""
    kind, folders = options[AdapterOptions].finetuning_type, options[ModelOptions].adapter_name_or_path
    if kind in ("full", "freeze"):
        return None
    if folders and not options[AdapterOptions].create_new_adapter:
        return folders[-1]
    if not folders and base is not None and adapters.is_adapter(base) and adapters.is_virtual(base):
        return base
    return None


def _numbers(folder: str) -> int:
    with safe_open(Path(folder) / adapters.WEIGHTS, framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
