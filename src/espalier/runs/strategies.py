"""The strategy of a run, from its options: decided before anything is loaded, and with the sizes of its model after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from espalier.config.option_set import OptionSet
from espalier.config.options import EngineOptions, OptimizerOptions, TrainOptions
from espalier.engine import deepspeed_file, strategy
from espalier.engine.deepspeed_file import RunValues
from espalier.engine.launch import processes


def with_strategy(options: OptionSet) -> OptionSet:
    """The options with the strategy that is meant in place of auto.

    Raises:
        UserError: a strategy that cannot be with so many processes or beside the other options, or a DeepSpeed file that
            contradicts them.
    """
    engine = options[EngineOptions]
    own = _own(engine)
    if own is not None:
        strategy.needs_deepspeed("the stage of a `deepspeed` file")
        deepspeed_file.checked(own, _given(options, processes()))
    stage = None if own is None else deepspeed_file.stage_of(own)
    kind = strategy.decided(engine.strategy, processes(), stage)
    strategy.check_offload(kind, engine.offload, own=own is not None)
    named = isinstance(engine.deepspeed, str) and not Path(engine.deepspeed).expanduser().exists()
    # One of the files that come with Espalier is written out, so that config.yaml says what it was.
    kept = own if named else engine.deepspeed
    return options.replaced(replace(engine, strategy=kind, deepspeed=kept))  # type: ignore[arg-type]


def wanted_of(options: OptionSet, hidden: int, trained: int) -> tuple[strategy.Wanted, list[str]]:
    """What `engine.strategy.prepare` is asked for, and lines about a DeepSpeed file.

    Args:
        hidden: the width of the model.
        trained: how many numbers are trained.
    """
    options = with_strategy(options)
    engine = options[EngineOptions]
    own = _own(engine)
    notes: list[str] = []
    if own is not None:
        own, notes = deepspeed_file.checked(own, _given(options, processes()))
        own = deepspeed_file.sized(own, hidden, trained)
    assert engine.precision != "auto"
    return strategy.Wanted(engine.strategy, engine.precision, engine.offload, hidden, own), notes


def _own(engine: EngineOptions) -> dict[str, Any] | None:
    own = engine.deepspeed
    return deepspeed_file.read(own) if isinstance(own, str) else own


def _given(options: OptionSet, world: int) -> RunValues:
    train, chosen = options[TrainOptions], options[OptimizerOptions]
    precision = options[EngineOptions].precision
    share = 0 < train.warmup_steps < 1 or (not train.warmup_steps and train.warmup_ratio > 0)
    return RunValues(
        precision=None if precision == "auto" else precision,
        processes=world,
        micro_batch=train.per_device_train_batch_size,
        accumulation=train.gradient_accumulation_steps,
        max_grad_norm=train.max_grad_norm,
        optimizer=chosen.optim,
        lr=train.learning_rate,
        betas=(chosen.adam_beta1, chosen.adam_beta2),
        eps=chosen.adam_epsilon,
        weight_decay=chosen.weight_decay,
        schedule=train.lr_scheduler_type,
        warmup_steps=None if share else int(train.warmup_steps),
    )
