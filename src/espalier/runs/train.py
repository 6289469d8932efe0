"""One stage, from its options to a model folder: the wiring around the one loop.

Running the same options again continues an interrupted run from its last checkpoint, and skips a finished
one whose options and inputs have not changed (`espalier.runs.earlier`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import set_seed

from espalier import config
from espalier.config.option_set import OptionSet
from espalier.config.options import (
    EngineOptions,
    EvaluationOptions,
    RunOptions,
    TokenizedOptions,
    TrackOptions,
)
from espalier.disk.temporary import remove_left
from espalier.engine import group
from espalier.engine.checkpoint import clear_checkpoints
from espalier.engine.finite import check_weights
from espalier.engine.hardware import keep_freed_memory
from espalier.engine.launch import processes, rank
from espalier.engine.loop import run_loop, stopped_at
from espalier.engine.precision import agreed_precision, choose_precision, is_emulated, kept_precision
from espalier.engine.signals import StopSignal
from espalier.engine.step import Hooks, Learner
from espalier.engine.strategy import SHARDED
from espalier.engine.track import Tracker, keep_rows
from espalier.engine.trackers import Sink, TrackedRun, open_trackers
from espalier.engine.whole import whole_parameters
from espalier.errors import Stopped
from espalier.runs.catalogue import CLASSES, STAGES
from espalier.runs.checks import check_startable, with_models_found
from espalier.runs.earlier import decide
from espalier.runs.opening import opening_lines
from espalier.runs.preflight import show_preflight
from espalier.runs.provenance import made_from
from espalier.runs.results import finish, write_config, write_end, write_summary
from espalier.runs.resume import checkpoints, resume, save, take_best
from espalier.runs.running import Running, Start
from espalier.runs.strategies import with_strategy
from espalier.runs.validation import validate
from espalier.runs.wiring import accelerator_of, schedule_of, wired
from espalier.screen import Screen
from espalier.stages.parts import Parts
from espalier.stages.positions import check_positions
from espalier.stages.rollout_options import RolloutOptions
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
    notes = list(config.canonical(raw)[1])
    options = with_models_found(options, notes.append)
    check_startable(stage, options)
    options = with_strategy(options)
    run = options[RunOptions]
    folder = Path(run.output_dir) / (run.name or stage)
    options = decided(options, folder if run.resume else None)
    made = made_from(options, processes=processes(), known=kept_in(options) / "files.json")
    if rank() == 0:
        remove_left(folder, of_anyone=True)
    decision = decide(folder, made, run.resume)
    if decision.done is not None:
        if rank() == 0:
            clear_checkpoints(checkpoints(folder))  # a kill after the end was written has left them
        Screen(stderr=True).say(f"{run.name or stage}: done already ({folder}), skipped", "dim")
        return decision.done
    keep_freed_memory()
    start = Start(stage, options, folder, made, accelerator_of(options), notes, decision.checkpoint)
    for note in notes:
        start.console.say(note, "yellow")
    for line in decision.notes:
        start.say(line)
    if start.option(EngineOptions).precision == "bf16" and is_emulated(start.accelerator.device):
        start.say(
            "bf16 is computed slowly here, for this CPU has no bf16 instructions; precision: fp32 is faster"
        )
    set_seed(run.seed)
    try:
        return _run(_prepared(start))
    finally:
        group.leave()


def kept_in(options: OptionSet) -> Path:
    """Where tokenised records and the hashes of large data files are kept."""
    path = options[TokenizedOptions].tokenized_path
    return Path(path).expanduser() if path else Path(options[RunOptions].output_dir) / "tokenized"


def decided(options: OptionSet, folder: Path | None) -> OptionSet:
    """The options with `precision: auto` replaced by what it means: for a run that goes on, what it began with.

    Args:
        folder: of the run that may go on.
    """
    engine = options[EngineOptions]
    cpu = not torch.cuda.is_available()
    kept = kept_precision(folder) if folder is not None and engine.precision == "auto" else None
    chosen = choose_precision(kept or engine.precision, torch.device("cpu" if cpu else "cuda"))
    return options.replaced(replace(engine, precision=agreed_precision(chosen, cpu=cpu)))


def setup_of(start: Start, reads: str) -> Setup:
    """The tokenizer, models and data of a run that reads records of this kind."""
    accelerator = start.accelerator
    return Setup(
        start.options,
        reads,
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device,
        start.say,
        start.folder / "rejected.jsonl" if start.is_main else None,
        kept=kept_in(start.options),
        show=lambda text: start.console.say(f"{start.name}: {text}", "dim"),
    )


def _prepared(start: Start) -> Running:
    """Everything loaded, wrapped, and where the last checkpoint has left it."""
    accelerator = start.accelerator
    setup = setup_of(start, STAGES[start.stage].reads)
    parts: Parts = STAGES[start.stage].build(setup)
    preflight = setup.preflight.report()
    show_preflight(start.console, start.name, preflight)
    new_tokens = start.option(RolloutOptions).max_new_tokens if STAGES[start.stage].samples else 0
    check_positions(parts.main.lm, preflight.parts.values(), new_tokens, start.say)
    made = wired(start.stage, start.options, parts, accelerator)
    for note in made.notes:
        start.say(note)
    if parts.sample_prompts and made.live.sampler is None and made.shares.kind in SHARDED:
        start.say(
            f"what the model says is not shown: under strategy: {made.shares.kind} no process holds it whole"
        )
    running = Running(
        start, setup, made.parts, made.live, made.optimizer, made.feed, made.shares, made.weights
    )
    resume(running)
    return running


def _run(running: Running) -> dict[str, Any]:
    start = running.start
    if start.is_main:
        write_config(start)
        keep_rows(start.folder / "samples.jsonl", running.progress.step)
    write_summary(running, "running")
    for line in opening_lines(running):
        start.console.say(f"{start.name}: {line}", "dim")
    try:
        tracker = Tracker(
            start.folder,
            start.name,
            running.feed.total_steps,
            partial(_open_trackers, running),
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


def _open_trackers(running: Running) -> list[Sink]:
    start, track = running.start, running.start.option(TrackOptions)
    options = yaml.safe_load(config.dump_yaml(start.options))
    name = track.run_name or start.name
    return open_trackers(
        track.report_to, TrackedRun(start.folder, name, track.project, options, running.progress.step)
    )


def _train(running: Running, tracker: Tracker, stop: StopSignal) -> None:
    """The loop, between two evaluations."""
    live, progress, looks = running.live, running.progress, running.start.option(EvaluationOptions)
    schedule = schedule_of(running.start.options, running.parts, running.feed.total_steps)
    if progress.step == 0 and looks.eval_steps != 0:
        tracker.log({"step": 0, **_evaluated(running, 0)})
    patience = looks.early_stopping_patience
    hooks = Hooks(
        save=lambda step: save(running, step),
        validate=lambda step: _evaluated(running, step),
        after_backward=lambda step: running.shares.after_backward(live.module),
        after_step=partial(_after_step, running),
        enough=lambda: patience is not None and progress.worse >= patience,
        learns=running.parts.learns,
    )
    run_loop(
        Learner(live.module, running.parts.objective, running.optimizer, live.accelerator),
        running.feed,
        schedule,
        hooks,
        tracker,
        progress,
        stop,
    )
    check_weights(whole_parameters(live.accelerator, live.module), progress.step)
    if progress.evaluated < progress.step and looks.eval_steps != 0:
        try:
            tracker.log({"step": progress.step, **_evaluated(running, progress.step)})
        except Stopped as stopped:
            save(running, progress.step)
            raise stopped_at(progress.step) from stopped
    if progress.step < running.feed.total_steps:
        running.start.say(
            f"ended at step {progress.step} of {running.feed.total_steps}: {progress.worse} evaluations in a row "
            "without a better held-out number (early_stopping_patience)"
        )
    take_best(running)


def _after_step(running: Running, step: int) -> None:
    """What the stage does, and once a look at what each rank holds."""
    live, after = running.live, running.parts.after_step
    if after is not None:
        after(live, step)
    if running.shares.after_step(live.accelerator, live.module, running.optimizer):
        write_summary(running, "running")


def _evaluated(running: Running, step: int) -> dict[str, float]:
    """The held-out numbers; a warning is in the summary at once, for those who look at the page while it runs."""
    watch = running.parts.watch
    before = 0 if watch is None else len(watch.warnings)
    numbers = validate(running, step)
    if watch is not None and len(watch.warnings) > before:
        write_summary(running, "running")
    return numbers
