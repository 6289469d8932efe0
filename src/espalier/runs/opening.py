"""What a run is, in a few short lines before its first step."""

from __future__ import annotations

from espalier.config.options import EngineOptions, TrainOptions
from espalier.engine.hardware import device_name
from espalier.models.quantise.turn import number_of_weights
from espalier.runs.catalogue import STAGES
from espalier.runs.running import Running


def opening_lines(running: Running) -> list[str]:
    """Device and precision; parameters and how many are trained; steps, and what is one."""
    start, parts, feed = running.start, running.parts, running.feed
    module = parts.trained
    engine, world = start.option(EngineOptions), start.accelerator.num_processes
    total, own = number_of_weights(module), number_of_weights(parts.main)
    beside = f" ({total - own:,} of them the critic's)" if total > own else ""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    share = "all trained" if trained == total else f"{trained:,} trained ({trained / max(1, total):.2%})"
    steps = "1 step" if feed.total_steps == 1 else f"{feed.total_steps:,} steps"
    done = f", going on after step {running.progress.step:,}" if running.progress.step else ""
    device = f"{device_name(start.accelerator.device)}, {engine.precision}"
    return [
        device + (f", {world} processes ({engine.strategy})" if world > 1 else ""),
        f"{total:,} parameters{beside}, {share}",
        f"{steps} of {_step(running, world)}{done}",
    ]


def _step(running: Running, world: int) -> str:
    train = running.start.option(TrainOptions)
    if train.tokens_per_step is not None:
        return f"up to {train.tokens_per_step:,} tokens"
    count = (train.per_device_train_batch_size or 1) * train.gradient_accumulation_steps * world
    what = "prompt" if STAGES[running.start.stage].reads == "prompt" else "record"
    return f"{count:,} {what}" + ("" if count == 1 else "s")
