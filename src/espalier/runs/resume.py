"""A run's checkpoint: everything that an exact continuation needs, and putting it back."""

from __future__ import annotations

from pathlib import Path

from accelerate.utils import gather_object

from espalier.config.options import EvaluationOptions, RunOptions
from espalier.engine import checkpoint
from espalier.engine.finite import check_weights
from espalier.engine.step import Progress
from espalier.engine.whole import set_moments, set_parameters, whole_moments, whole_parameters
from espalier.errors import UserError
from espalier.runs.earlier import CHECKPOINTS
from espalier.runs.running import Running, Start


def checkpoints(folder: Path) -> Path:
    """Where the checkpoints of a run lie."""
    return folder / CHECKPOINTS


def save(running: Running, step: int) -> None:
    """Write the checkpoint of a step; all ranks call it, the first one writes."""
    start, live, parts = running.start, running.live, running.parts
    accelerator = live.accelerator
    weights = whole_parameters(accelerator, live.module)
    check_weights(weights, step)
    own = [(accelerator.process_index, checkpoint.rng_to_tensors())]
    rngs = gather_object(own) if accelerator.num_processes > 1 else own
    tensors = {
        "model": weights,
        "optimizer": whole_moments(accelerator, live.module, running.optimizer),
        **{f"rng-{rank}": generators for rank, generators in rngs},
        **{f"average-{name}": dict(m.named_parameters()) for name, m in parts.averages.items()},
    }
    state = {
        "made_from": start.made_from.as_json(),
        "progress": running.progress.state(),
        "feed": running.feed.place(),
        "held_out": running.held_out,
        "controllers": {name: controller.state() for name, controller in parts.controllers.items()},
        "watch": None if parts.watch is None else parts.watch.state(),
    }
    if start.is_main:
        keep = start.option(RunOptions).save_total_limit
        best = running.progress.best.get("step") if keeps_best(start) else None
        checkpoint.save_checkpoint(checkpoints(start.folder), step, tensors, state, keep, best)
    accelerator.wait_for_everyone()


def resume(running: Running) -> None:
    """Go on from the checkpoint that was found to be whole and this run's (`earlier.decide`), or remove what is there.

    Raises:
        UserError: the data do not fit it.
    """
    start, live, parts = running.start, running.live, running.parts
    path = start.checkpoint
    if path is None:
        if start.is_main and checkpoint.checkpoints_in(checkpoints(start.folder)):
            checkpoint.clear_checkpoints(checkpoints(start.folder))
        live.accelerator.wait_for_everyone()
        return
    tensors, state = checkpoint.read_checkpoint(path)
    progress = state["progress"]
    _put_back(running, tensors)
    set_moments(live.accelerator, live.module, running.optimizer, tensors["optimizer"], progress["step"])
    for name, controller in parts.controllers.items():
        controller.restore(state["controllers"][name])
    if parts.watch is not None and state.get("watch"):  # none was written before there were such
        parts.watch.restore(state["watch"])
    try:
        running.feed.restore(state["feed"])
    except ValueError as changed:
        raise UserError(f"{path}: {changed}") from changed
    running.progress, running.held_out = Progress(**progress), state["held_out"]
    own = tensors.get(f"rng-{live.accelerator.process_index}")
    if own is not None:
        checkpoint.rng_from_tensors(own)
    start.say(f"continuing from step {running.progress.step} ({path})")


def keeps_best(start: Start) -> bool:
    """Whether the weights of the best evaluation are saved in the end."""
    return start.option(EvaluationOptions).load_best_model_at_end


def take_best(running: Running) -> None:
    """Put the weights of the best evaluation back, once training has ended.

    Raises:
        UserError: the checkpoint that holds them is missing or damaged.
    """
    start, progress = running.start, running.progress
    if not keeps_best(start) or progress.best.get("step", progress.step) == progress.step:
        return
    step = progress.best["step"]
    tensors, _ = checkpoint.load_checkpoint(checkpoints(start.folder) / f"step-{step}")
    _put_back(running, tensors)
    name = progress.best.get("metric", running.parts.held_out.name)
    own = progress.best.get("held_out", progress.best)
    running.held_out |= {"after": own["value"], "stderr_after": own["stderr"]}
    start.say(
        f"the weights of step {step} of {progress.step} are saved: its held-out {name} was the best, "
        f"{progress.best['value']:.4f}"
    )


def _put_back(running: Running, tensors: checkpoint.Tensors) -> None:
    set_parameters(running.live.accelerator, running.live.module, tensors["model"])
    for name, average in running.parts.averages.items():
        for key, parameter in average.named_parameters():
            parameter.data.copy_(tensors[f"average-{name}"][key])
