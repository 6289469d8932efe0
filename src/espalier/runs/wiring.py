"""From a run's options to what its loop is given: accelerator, prepared modules, optimiser, schedule."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from espalier.config.option_set import OptionSet
from espalier.config.options import (
    AdaloraOptions,
    EngineOptions,
    EvaluationOptions,
    LoraOptions,
    OptimizerOptions,
    RunOptions,
    TrackOptions,
    TrainOptions,
)
from espalier.config.train_options import in_steps
from espalier.data.steps.feed import Feed
from espalier.engine import strategy
from espalier.engine.optim import OptimizerSettings, learning_rates, optimizer_of
from espalier.engine.step import Rate, Schedule
from espalier.runs.catalogue import SHARDED, STAGES
from espalier.runs.named import json_object
from espalier.stages.adapting import rank_allocations
from espalier.stages.parts import Live, Pace, Parts


def accelerator_of(options: OptionSet) -> Accelerator:
    """The accelerator of a run whose precision is decided."""
    engine = options[EngineOptions]
    assert engine.precision != "auto"
    own = engine.deepspeed
    if isinstance(own, str):
        own = json_object("deepspeed", own)
    return strategy.make_accelerator(
        engine.strategy,
        engine.precision,
        max_grad_norm=options[TrainOptions].max_grad_norm,
        offload=engine.offload,
        deepspeed=own,
    )


@dataclass(frozen=True)
class Wired:
    """A stage's parts, prepared for the loop.

    Attributes:
        parts: of the stage, with what AdaLoRA adds.
        live, optimizer: as accelerate has prepared them.
        feed: of the prepared module.
    """

    parts: Parts
    live: Live
    optimizer: torch.optim.Optimizer
    feed: Feed


def wired(stage: str, options: OptionSet, parts: Parts, accelerator: Accelerator) -> Wired:
    """The parts of a stage, wrapped, with their optimiser and their feed."""
    parts, allocations = rank_allocations(parts, options[AdaloraOptions])
    sharded = options[EngineOptions].strategy in SHARDED
    sampler = copy.deepcopy(parts.main.lm) if sharded and STAGES[stage].samples else None
    module, optimizer = accelerator.prepare(parts.trained, _optimizer(options, parts))
    live = Live(module, accelerator, sampler)
    feed = parts.feed(live)
    for allocation in allocations:
        allocation.begin(feed.total_steps)
    return Wired(parts, live, optimizer, feed)


def _optimizer(options: OptionSet, parts: Parts) -> torch.optim.Optimizer:
    chosen = options[OptimizerOptions]
    settings = OptimizerSettings(
        chosen.optim,
        options[TrainOptions].learning_rate,
        chosen.weight_decay,
        (chosen.adam_beta1, chosen.adam_beta2),
        chosen.adam_epsilon,
        options[LoraOptions].loraplus_lr_ratio,
    )
    return optimizer_of(parts.trained, settings, list(parts.paces))


def schedule_of(options: OptionSet, parts: Parts, total: int) -> Schedule:
    """The rates of a run of `total` steps, and when what is due."""
    train = options[TrainOptions]
    own = in_steps(train.warmup_steps, total) or math.ceil(train.warmup_ratio * total)

    def rate(pace: Pace) -> Rate:
        return learning_rates(
            train.lr_scheduler_type,
            train.learning_rate if pace.learning_rate is None else pace.learning_rate,
            own if pace.warmup_steps is None else in_steps(pace.warmup_steps, total),
            total,
            train.lr_scheduler_kwargs,
            in_steps(pace.waits, total),
        )

    norm = train.max_grad_norm
    return Schedule(
        learning_rate=rate(Pace()),
        max_grad_norm=norm,
        parts={
            name: (rate(pace), norm if pace.max_grad_norm is None else pace.max_grad_norm)
            for name, pace in parts.paces.items()
        },
        logging_steps=in_steps(options[TrackOptions].logging_steps, total),
        save_steps=in_steps(options[RunOptions].save_steps, total),
        eval_steps=in_steps(options[EvaluationOptions].eval_steps or 0, total),
    )
