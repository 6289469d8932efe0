"""The training stages by name: their options, and what of them cannot be done."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from espalier.config.option_set import OptionSet
from espalier.config.options import (
    COMMON,
    AdapterOptions,
    EngineOptions,
    LoraOptions,
    ModelOptions,
    OptimizerOptions,
    VirtualTokenOptions,
)
from espalier.engine.strategy import SHARDED, ZERO
from espalier.errors import UserError
from espalier.models.adapters.adapter import VIRTUAL
from espalier.models.quantise.methods import problem
from espalier.stages import objectives
from espalier.stages.quantised import check_whole, quantisation_of
from espalier.stages.references import ReferenceOptions
from espalier.stages.stage import Stage

STAGES: dict[str, Stage] = {
    name: import_module(f"{objectives.__name__}.{name}").STAGE for name in objectives.NAMES
}

CLASSES: dict[str, tuple[type, ...]] = {name: (*COMMON, *stage.options) for name, stage in STAGES.items()}
"""The option classes of each stage."""


def check_possible(stage: str, options: OptionSet) -> None:
    """What cannot be done is said before anything is loaded.

    Raises:
        UserError: an option that is not available, or two that do not go together.
    """
    if options[EngineOptions].compile:
        raise UserError("`compile` is known but not available yet, and is never ignored silently. Remove it.")
    _check_optimizer(options)
    _check_quantisation(options)
    _check_sharded(stage, options)
    _check_adapter(options)
    if stage in STAGES:
        STAGES[stage].check(options)


def _check_sharded(stage: str, options: OptionSet) -> None:
    """What cannot be done where no process holds the whole model."""
    strategy, kind = options[EngineOptions].strategy, options[AdapterOptions].finetuning_type
    if strategy in SHARDED and kind not in ("full", "freeze"):
        why, cure, lora = None, "", options[LoraOptions]
        begun = (
            ("adapter_name_or_path", options[ModelOptions].adapter_name_or_path),
            ("lora_bias", lora.lora_bias != "none"),
            ("modules_to_save", lora.modules_to_save),
            ("pissa_init", lora.pissa_init),
        )
        if kind in VIRTUAL:
            why = "virtual tokens are read outside of the sharded model's own forward"
        elif stage in STAGES and STAGES[stage].reference(options):
            keys = [key for key, given in begun if given]
            if keys:
                why = f"in {stage} with {keys[0]}: the reference is the adapter as it began, which no rank holds whole"
                cure = ", or precompute_ref_logprobs: true" if ReferenceOptions in options else ""
        if why is not None:
            raise UserError(
                f"finetuning_type: {kind} with strategy: {strategy} is not possible, {why}. Use strategy: ddp or zero2"
                f"{cure}."
            )
    if kind == "adalora" and (strategy in (*SHARDED, "zero1", "zero2") or options[EngineOptions].deepspeed):
        raise UserError(
            f"finetuning_type: adalora with strategy: {strategy} is not possible: it weighs whole gradients after each "
            "step. Use strategy: ddp."
        )


def _check_optimizer(options: OptionSet) -> None:
    kind, engine = options[OptimizerOptions].optim, options[EngineOptions]
    if kind != "adamw" and (engine.strategy in ("fsdp", *ZERO) or engine.deepspeed is not None):
        raise UserError(
            f"optim: {kind} with strategy: {engine.strategy} is not possible: its state cannot be cut into the "
            "processes' shares. Use optim: adamw, which they share, or strategy: ddp."
        )
    if kind == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise UserError("optim: adamw_8bit needs bitsandbytes. Install it: pip install 'espalier-llm[quant]'")


def _check_adapter(options: OptionSet) -> None:
    """What does not go together among the adapters' keys."""
    kind, lora = options[AdapterOptions].finetuning_type, options[LoraOptions]
    for key, asked, kinds in (
        ("use_dora", lora.use_dora, ("lora",)),
        ("use_rslora", lora.use_rslora, ("lora",)),
        ("pissa_init", lora.pissa_init, ("lora",)),
        ("modules_to_save", lora.modules_to_save, ("lora", "full")),  # which trains them anyway
        ("loraplus_lr_ratio", lora.loraplus_lr_ratio != 1, ("lora",)),
        ("prompt_init_text", options[VirtualTokenOptions].prompt_init_text, ("prompt", "prefix")),
        ("prefix_projection", options[VirtualTokenOptions].prefix_projection, ("prefix",)),
    ):
        if asked and kind not in kinds:
            raise UserError(
                f"`{key}` belongs to finetuning_type: {' or '.join(kinds)}, not to {kind}. Remove it."
            )
    if kind == "prefix" and options[EngineOptions].gradient_checkpointing:
        raise UserError(
            "finetuning_type: prefix with gradient_checkpointing is not possible: layers that are computed again do "
            "not see learned keys and values. Remove gradient_checkpointing, or use prompt."
        )
    model = options[ModelOptions]
    if options[AdapterOptions].create_new_adapter and not model.adapter_name_or_path:
        raise UserError(
            "`create_new_adapter` without `adapter_name_or_path` has nothing to merge. Name the adapter, or remove it."
        )


def _check_quantisation(options: OptionSet) -> None:
    wanted = quantisation_of(options[AdapterOptions])
    if wanted is None:
        return
    reason = problem(wanted)
    if reason is not None:
        raise UserError(f"quantization_bit: {wanted.bits}, quantization_method: {wanted.method}: {reason}")
    if options[ModelOptions].model_config is not None:
        raise UserError(
            "`quantization_bit` stores trained weights in few bits, and `model_config` makes new ones. Remove one."
        )
    check_whole(options[EngineOptions])
