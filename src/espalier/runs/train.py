"""One stage, from its options to a model folder: the wiring around the one loop.

Running the same options again continues an interrupted run from its last checkpoint, and skips a finished
one whose options and inputs have not changed (`espalier.runs.earlier`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from espalier import config
from espalier.config.option_set import OptionSet
from espalier.config.options import (
    AdaloraOptions,
    AdamOptions,
    EngineOptions,
    RunOptions,
    TokenizedOptions,
    TrainOptions,
)
from espalier.disk.temporary import remove_left
from espalier.engine import strategy
from espalier.engine.checkpoint import clear_checkpoints
from espalier.engine.finite import check_weights
from espalier.engine.hardware import keep_freed_memory
from espalier.engine.launch import processes, rank
from espalier.engine.loop import run_loop, stopped_at
from espalier.engine.optim import adamw, learning_rate_at
from espalier.engine.precision import agreed_precision, choose_precision, is_emulated, kept_precision
from espalier.engine.signals import StopSignal
from espalier.engine.step import Hooks, Learner, Schedule
from espalier.engine.track import Tracker, keep_rows
from espalier.errors import Stopped
from espalier.runs.catalogue import CLASSES, SHARDED, STAGES
from espalier.runs.checks import check_startable, json_object
from espalier.runs.earlier import decide
from espalier.runs.preflight import show_preflight
from espalier.runs.provenance import made_from
from espalier.runs.results import finish, write_config, write_end, write_summary
from espalier.runs.resume import checkpoints, resume, save
from espalier.runs.running import Running, Start
from espalier.runs.validation import validate
from espalier.screen import Screen
from espalier.stages.adapting import rank_allocations
from espalier.stages.parts import Live, Parts
from espalier.stages.positions import check_positions
from espalier.stages.rollouts import RolloutOptions
from espalier.stages.setup import Setup


def run_stage(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Run (or continue, or skip) one stage and return its summary.

    Args:
        raw: flat options, ``stage`` among them, as `espalier.config.load_yaml` gives them.

    Raises:
        UserError: anything wrong with the user's options or data, or with what an earlier start has left.
        Stopped: a signal came; the checkpoint is written.
    """
    stage = config.stage_of(raw, CLASSES)
    options = config.build(raw, CLASSES[stage], all_classes=CLASSES)
    notes = config.canonical(raw)[1]
    check_startable(stage, options)
    run = options[RunOptions]
    folder = Path(run.output_dir) / (run.name or stage)
    options = _decided(options, folder if run.resume else None)
    made = made_from(options, processes=processes(), known=_kept(options) / "files.json")
    if rank() == 0:
        remove_left(folder, of_anyone=True)
    decision = decide(folder, made, run.resume)
    if decision.done is not None:
        if rank() == 0:
            clear_checkpoints(checkpoints(folder))  # a kill after the end was written has left them
        Screen(stderr=True).say(f"{run.name or stage}: done already ({folder}), skipped", "dim")
        return decision.done
    keep_freed_memory()
    start = Start(stage, options, folder, made, _accelerator(options), list(notes), decision.checkpoint)
    for note in notes:
        start.console.say(note, "yellow")
    for line in decision.notes:
        start.say(line)
    if start.option(EngineOptions).precision == "bf16" and is_emulated(start.accelerator.device):
        start.say(
            "bf16 is computed slowly here, for this CPU has no bf16 instructions; precision: fp32 is faster"
        )
    set_seed(run.seed)
    return _run(_prepared(start))


def _kept(options: OptionSet) -> Path:
    """Where tokenised records and the hashes of large data files are kept."""
    path = options[TokenizedOptions].tokenized_path
    return Path(path).expanduser() if path else Path(options[RunOptions].output_dir) / "tokenized"


def _decided(options: OptionSet, folder: Path | None) -> OptionSet:
    """The options with `precision: auto` replaced by what it means: for a run that goes on, what it began with.

    Args:
        folder: of the run that may go on.
    """
    engine = options[EngineOptions]
    cpu = not torch.cuda.is_available()
    kept = kept_precision(folder) if folder is not None and engine.precision == "auto" else None
    chosen = choose_precision(kept or engine.precision, torch.device("cpu" if cpu else "cuda"))
    return options.replaced(replace(engine, precision=agreed_precision(chosen, cpu=cpu)))


def _accelerator(options: OptionSet) -> Accelerator:
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


def _prepared(start: Start) -> Running:
    """Everything loaded, wrapped, and where the last checkpoint has left it."""
    accelerator = start.accelerator
    setup = Setup(
        start.options,
        STAGES[start.stage].reads,
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device,
        start.say,
        start.folder / "rejected.jsonl" if start.is_main else None,
        kept=_kept(start.options),
        show=lambda text: start.console.say(f"{start.name}: {text}", "dim"),
    )
    parts: Parts = STAGES[start.stage].build(setup)
    parts, allocations = rank_allocations(parts, start.option(AdaloraOptions))
    preflight = setup.preflight.report()
    show_preflight(start.console, start.name, preflight)
    new_tokens = start.option(RolloutOptions).max_new_tokens if STAGES[start.stage].samples else 0
    check_positions(parts.main.lm, preflight.parts.values(), new_tokens, start.say)
    sharded = start.option(EngineOptions).strategy in SHARDED
    sampler = copy.deepcopy(parts.main.lm) if sharded and STAGES[start.stage].samples else None
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
    try:
        tracker = Tracker(
            start.folder,
            start.name,
            running.feed.total_steps,
            run.report_to,
            start.is_main,
            resumed_step=running.progress.step,
        )
        with StopSignal() as stop:
            with tracker:
                _train(running, tracker, stop)
            summary = finish(running)
    except BaseException as error:
        ended = isinstance(error, Stopped | KeyboardInterrupt)
        write_end(running, "stopped" if ended else "failed")
        raise
    if stop.asked:
        raise Stopped(f"stopped after {start.name}, which is done; run the same command again to continue")
    return summary


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
        learns=running.parts.learns,
    )
    run_loop(
        Learner(live.module, running.parts.objective, running.optimizer, live.accelerator),
        running.feed,
        _schedule(running.start, running.feed.total_steps),
        hooks,
        tracker,
        progress,
        stop,
    )
    check_weights(strategy.whole_parameters(live.accelerator, live.module), progress.step)
    try:
        tracker.log({"step": progress.step, **validate(running, progress.step)})
    except Stopped as stopped:
        save(running, progress.step)
        raise stopped_at(progress.step) from stopped


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
