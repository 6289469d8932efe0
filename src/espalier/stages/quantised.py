"""Training on top of weights in few bits (QLoRA): from the options to what is loaded, and what cannot be done."""

from __future__ import annotations

from torch import nn

from espalier.config.options import AdapterOptions, EngineOptions
from espalier.errors import UserError
from espalier.models.quantise.methods import Quantisation
from espalier.models.quantise.turn import is_quantised

WHOLE = ("auto", "single", "ddp")
"""Strategies that leave the weights whole and as they are."""


def quantisation_of(adapter: AdapterOptions) -> Quantisation | None:
    """How the frozen weights are to be stored; None: as they are."""
    if adapter.quantization_bit is None:
        return None
    return Quantisation(
        adapter.quantization_method,
        adapter.quantization_bit,
        adapter.quantization_type,
        adapter.double_quantization,
    )


def holds_whole(engine: EngineOptions) -> bool:
    """Whether every process holds all weights as they were loaded."""
    return engine.strategy in WHOLE and engine.deepspeed is None


def check_whole(engine: EngineOptions) -> None:
    """Raises UserError where quantised weights would be cut into shards or cast."""
    if not holds_whole(engine):
        setting = f"strategy: {engine.strategy}" if engine.deepspeed is None else "deepspeed"
        raise UserError(
            f"{setting} shards or casts the weights, and those in few bits can be neither. Use strategy: single or ddp "
            "with quantised models; what is trained of them is small."
        )


def check_trainable(lm: nn.Module, adapter: AdapterOptions, engine: EngineOptions) -> None:
    """The same for a model whose folder was quantised before, and which the options do not tell of.

    Raises:
        UserError: its weights were to be trained, or sharded.
    """
    if not is_quantised(lm):
        return
    if adapter.finetuning_type in ("full", "freeze"):
        raise UserError(
            f"the model is quantised, and finetuning_type {adapter.finetuning_type} would train its weights. Set "
            "finetuning_type: lora, or start from the plain model."
        )
    check_whole(engine)
