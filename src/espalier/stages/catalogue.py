"""The training stages by name: their options, and what of them cannot be done."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from espalier.errors import UserError
from espalier.models.quantise.methods import problem
from espalier.options import (
    COMMON,
    AdapterOptions,
    EngineOptions,
    ModelOptions,
    TrainOptions,
)
from espalier.stages import dpo, grpo, ppo, pretrain, reward, sft
from espalier.stages.quantised import check_whole, quantisation_of

STAGES: dict[str, ModuleType] = {
    "pretrain": pretrain,
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "ppo": ppo,
    "grpo": grpo,
}

CLASSES: dict[str, tuple[type, ...]] = {name: (*COMMON, *module.OPTIONS) for name, module in STAGES.items()}
"""The option classes of each stage."""

SAMPLED = ("ppo", "grpo")
"""Stages that sample from the model that they train."""

SHARDED = ("fsdp", "zero3")
"""Strategies under which no process holds the whole model."""


def check_possible(stage: str, options: Mapping[type, Any]) -> None:
    """What cannot be done is said before anything is loaded.

    Raises:
        UserError: an option that is not available, or two that do not go together.
    """
    not_yet = {
        "compile": options[EngineOptions].compile,
        "optim": options[TrainOptions].optim != "adamw",
        "rope_scaling": options[ModelOptions].rope_scaling is not None,
    }
    for key, asked in not_yet.items():
        if asked:
            raise UserError(
                f"`{key}` is known but not available yet, and is never ignored silently. Remove it."
            )
    _check_quantisation(options)
    sharded = options[EngineOptions].strategy in SHARDED
    if sharded and options[AdapterOptions].finetuning_type == "lora" and stage in ("dpo", "ppo", "grpo"):
        raise UserError(
            f"finetuning_type: lora with strategy: {options[EngineOptions].strategy} is not possible in {stage}: "
            "its reference is the adapter switched off, inside a sharded model. Use strategy: ddp or zero2."
        )


def _check_quantisation(options: Mapping[type, Any]) -> None:
    wanted = quantisation_of(options[AdapterOptions])
    if wanted is None:
        return
    said = problem(wanted)
    if said is not None:
        raise UserError(f"quantization_bit: {wanted.bits}, quantization_method: {wanted.method}: {said}")
    if options[ModelOptions].model_config is not None:
        raise UserError(
            "`quantization_bit` stores trained weights in few bits, and `model_config` makes new ones. Remove one."
        )
    check_whole(options[EngineOptions])
