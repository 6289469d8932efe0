"""From a run's options to what its loop is given: accelerator, prepared modules, optimiser, schedule."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

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
from espalier.engine.shares import Shares, whole_of
from espalier.engine.step import Rate, Schedule
from espalier.engine.strategy import SHARDED
from espalier.models.load import hidden_size
from espalier.models.quantise.turn import number_of_weights
from espalier.runs.catalogue import STAGES
from espalier.runs.strategies import wanted_of
from espalier.stages.adapting import rank_allocations
from espalier.stages.parts import Live, Pace, Parts


def accelerator_of(options: OptionSet) -> Accelerator:
    """The accelerator of a run whose precision is decided."""
    precision = options[EngineOptions].precision
    assert precision != "auto"
    return strategy.make_accelerator(precision)


@dataclass(frozen=True)
class Wired:
    """A stage's parts, prepared for the loop.

    Attributes:
        parts: of the stage, with what AdaLoRA adds.
        live, optimizer: as the strategy has prepared them.
        feed: of the prepared module.
        shares: measures what each rank holds.
        weights: how many the stage's model has.
        notes: lines about a DeepSpeed file.
    """

    parts: Parts
    live: Live
    optimizer: torch.optim.Optimizer
    feed: Feed
    shares: Shares
    weights: int
    notes: list[str]


def wired(stage: str, options: OptionSet, parts: Parts, accelerator: Accelerator) -> Wired:
    """The parts of a stage, wrapped, with their optimiser and their feed."""
    parts, allocations = rank_allocations(parts, options[AdaloraOptions])
    whole = whole_of(parts.trained)
    wanted, notes = wanted_of(options, hidden_size(parts.main.lm), whole.trained)
    sampler = copy.deepcopy(parts.main.lm) if wanted.kind in SHARDED and STAGES[stage].samples else None
    shares = Shares(wanted.kind, whole, checked=wanted.deepspeed is None)
    weights = number_of_weights(parts.main)
    module, optimizer = strategy.prepare(
        accelerator, wanted, parts.trained, lambda module: _optimizer(options, parts, module)
    )
    live = Live(module, accelerator, sampler)
    feed = parts.feed(live)
    for allocation in allocations:
        allocation.begin(feed.total_steps)
    return Wired(parts, live, optimizer, feed, shares, weights, notes)


def _optimizer(options: OptionSet, parts: Parts, module: nn.Module) -> torch.optim.Optimizer:
    chosen = options[OptimizerOptions]
    settings = OptimizerSettings(
        chosen.optim,
        options[TrainOptions].learning_rate,
        chosen.weight_decay,
        (chosen.adam_beta1, chosen.adam_beta2),
        chosen.adam_epsilon,
        options[LoraOptions].loraplus_lr_ratio,
    )
    return optimizer_of(module, settings, list(parts.paces))


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
