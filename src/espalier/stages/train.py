"""One stage, from its options to a model folder: the wiring around the one loop.

Running the same options again continues an interrupted run from its last checkpoint, and skips a finished
one whose options and inputs have not changed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from espalier import config
from espalier.engine import strategy
from espalier.engine.hardware import choose_precision, keep_freed_memory
from espalier.engine.loop import Hooks, Schedule, Stopped, run_loop
from espalier.engine.optim import adamw, learning_rate_at
from espalier.engine.signals import StopSignal
from espalier.engine.track import Tracker, keep_rows
from espalier.errors import UserError
from espalier.options import AdaloraOptions, AdamOptions, EngineOptions, RunOptions, TrainOptions
from espalier.screen import Screen
from espalier.stages.adapting import rank_allocations
from espalier.stages.catalogue import CLASSES, SAMPLED, SHARDED, STAGES, check_possible
from espalier.stages.positions import check_positions
from espalier.stages.preflight import show_preflight
from espalier.stages.results import finished, save_models, write_config, write_summary
from espalier.stages.resume import resume, save
from espalier.stages.rollouts import RolloutOptions
from espalier.stages.running import Running, Start
from espalier.stages.setup import Setup
from espalier.stages.stage import Live, Parts
from espalier.stages.validation import validate


def run_stage(raw: Mapping[str, Any], *, upstream: str = "") -> dict[str, Any]:
    """Run (or continue, or skip) one stage and return its summary.

    Args:
        raw: flat options, ``stage`` among them, as `espalier.config.load_yaml` gives them.
        upstream: fingerprint of the earlier stage that this one starts from.

    Raises:
        UserError: anything wrong with the user's options or data.
        Stopped: a signal came; the checkpoint is written.
    """
    stage = config.stage_of(raw, CLASSES)
    options = config.build(raw, CLASSES[stage], all_classes=CLASSES)
    notes = config.canonical(raw)[1]
    check_possible(stage, options)
    run: RunOptions = options[RunOptions]
    folder = Path(run.output_dir) / (run.name or stage)
    fingerprint = config.options_hash({"options": _meaning(options), "upstream": upstream})
    done = finished(folder, fingerprint)
    if done is not None and run.resume:
        Screen(stderr=True).say(f"{run.name or stage}: done already ({folder}), skipped", "dim")
        return done
    keep_freed_memory()
    accelerator, precision = _accelerator(options)
    start = Start(stage, options, folder, fingerprint, accelerator, precision, list(notes))
    for note in notes:
        start.console.say(note, "yellow")
    set_seed(run.seed)
    return _run(_prepared(start))


def _meaning(options: Mapping[type, Any]) -> dict[str, Any]:
    """What the result depends on: all options but where it is written and how it is shown."""
    shown = {"output_dir", "resume", "report_to", "logging_steps", "save_steps", "save_total_limit"}
    shown |= {"tokenized_path", "preprocessing_num_workers"}
    flat = {k: v for held in options.values() for k, v in vars(held).items()}
    return {k: v for k, v in flat.items() if k not in shown}


def _accelerator(options: Mapping[type, Any]) -> tuple[Accelerator, str]:
    engine: EngineOptions = options[EngineOptions]
    precision = choose_precision(
        engine.precision, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    own = engine.deepspeed
    if isinstance(own, str):
        own = json.loads(Path(own).read_text("utf-8"))
    made = strategy.make_accelerator(
        engine.strategy,
        precision,
        max_grad_norm=options[TrainOptions].max_grad_norm,
        offload=engine.offload,
        deepspeed=own,
    )
    return made, precision


def _prepared(start: Start) -> Running:
    """Everything loaded, wrapped, and where the last checkpoint has left it."""
    accelerator = start.accelerator
    setup = Setup(
        start.options,
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device,
        start.say,
        start.folder / "rejected.jsonl" if start.is_main else None,
        kept=Path(start.option(RunOptions).output_dir) / "tokenized",
        show=lambda text: start.console.say(f"{start.name}: {text}", "dim"),
    )
    parts: Parts = STAGES[start.stage].build(setup)
    parts, allocations = rank_allocations(parts, start.option(AdaloraOptions))
    preflight = setup.preflight.result()
    show_preflight(start.console, start.name, preflight)
    new_tokens = start.option(RolloutOptions).max_new_tokens if start.stage in SAMPLED else 0
    check_positions(parts.main.lm, preflight, new_tokens, start.say)
    sharded = start.option(EngineOptions).strategy in SHARDED
    sampler = copy.deepcopy(parts.main.lm) if sharded and start.stage in SAMPLED else None
    module, optimizer = accelerator.prepare(parts.trained, _optimizer(start, parts))
    live = Live(module, accelerator, sampler)
    running = Running(start, setup, parts, live, optimizer, parts.feed(live))
    for allocation in allocations:
        allocation.begin(running.feed.total_steps)
    resume(running)
    return running


def _optimizer(start: Start, parts: Parts) -> torch.optim.Optimizer:
    adam, train = start.option(AdamOptions), start.option(TrainOptions)
    return adamw(
        parts.trained,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        betas=(adam.adam_beta1, adam.adam_beta2),
        eps=adam.adam_epsilon,
    )


def _run(running: Running) -> dict[str, Any]:
    start, run = running.start, running.start.option(RunOptions)
    if start.is_main:
        write_config(start)
        keep_rows(start.folder / "samples.jsonl", running.progress.step)
    write_summary(running, "running")
    tracker = Tracker(
        start.folder,
        start.name,
        running.feed.total_steps,
        run.report_to,
        start.is_main,
        resumed_step=running.progress.step,
    )
    try:
        with tracker, StopSignal() as stop:
            _train(running, tracker, stop)
    except BaseException as error:
        if isinstance(error, Stopped):
            start.console.say(f"stopped at step {error.step}; run the same command again to continue")
        with contextlib.suppress(UserError):  # a disk that is full must not hide what went wrong first
            write_summary(running, "stopped")
        raise
    save_models(running)
    return write_summary(running, "done")


def _train(running: Running, tracker: Tracker, stop: StopSignal) -> None:
    """The loop, between two evaluations."""
    live, progress = running.live, running.progress
    if progress.step == 0:
        tracker.log({"step": 0, **validate(running, 0)})
    after = running.parts.after_step
    hooks = Hooks(
        save=lambda step: save(running, step),
        validate=lambda step: validate(running, step),
        after_step=(lambda step: after(live, step)) if after is not None else (lambda step: None),
    )
    run_loop(
        live.module,
        running.parts.objective,
        running.feed,
        running.optimizer,
        live.accelerator,
        tracker,
        _schedule(running.start, running.feed.total_steps),
        hooks,
        progress,
        stop,
    )
    tracker.log({"step": progress.step, **validate(running, progress.step)})


def _schedule(start: Start, total: int) -> Schedule:
    train, run = start.option(TrainOptions), start.option(RunOptions)
    warmup = train.warmup_steps or math.ceil(train.warmup_ratio * total)
    return Schedule(
        learning_rate=lambda step: learning_rate_at(
            step,
            peak=train.learning_rate,
            kind=train.lr_scheduler_type,
            warmup_steps=warmup,
            total_steps=total,
        ),
        max_grad_norm=train.max_grad_norm,
        logging_steps=run.logging_steps,
        save_steps=run.save_steps,
        eval_steps=run.eval_steps or 0,
    )
