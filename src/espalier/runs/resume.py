"""A run's checkpoint: everything that an exact continuation needs, and putting it back."""

from __future__ import annotations

from pathlib import Path

from accelerate.utils import gather_object

from espalier.config.options import RunOptions
from espalier.engine import checkpoint, strategy
from espalier.engine.finite import check_weights
from espalier.engine.step import Progress
from espalier.errors import UserError
from espalier.runs.earlier import CHECKPOINTS
from espalier.runs.running import Running


def checkpoints(folder: Path) -> Path:
    """Where the checkpoints of a run lie."""
    return folder / CHECKPOINTS


def save(running: Running, step: int) -> None:
    """Write the checkpoint of a step; all ranks call it, the first one writes."""
    start, live, parts = running.start, running.live, running.parts
    accelerator = live.accelerator
    weights = strategy.whole_parameters(accelerator, live.module)
    check_weights(weights, step)
    own = [(accelerator.process_index, checkpoint.rng_to_tensors())]
    rngs = gather_object(own) if accelerator.num_processes > 1 else own
    tensors = {
        "model": weights,
        "optimizer": strategy.whole_moments(accelerator, live.module, running.optimizer),
        **{f"rng-{rank}": generators for rank, generators in rngs},
        **{f"average-{name}": dict(m.named_parameters()) for name, m in parts.averages.items()},
    }
    state = {
        "made_from": start.made_from.as_json(),
        "progress": running.progress.state(),
        "feed": running.feed.place(),
        "held_out": running.held_out,
        "controllers": {name: controller.state() for name, controller in parts.controllers.items()},
    }
    if start.is_main:
        keep = start.option(RunOptions).save_total_limit
        checkpoint.save_checkpoint(checkpoints(start.folder), step, tensors, state, keep)
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
    strategy.set_parameters(live.accelerator, live.module, tensors["model"])
    strategy.set_moments(
        live.accelerator, live.module, running.optimizer, tensors["optimizer"], progress["step"]
    )
    for name, average in parts.averages.items():
        for key, parameter in average.named_parameters():
            parameter.data.copy_(tensors[f"average-{name}"][key])
    for name, controller in parts.controllers.items():
        controller.restore(state["controllers"][name])
    try:
        running.feed.restore(state["feed"])
    except ValueError as changed:
        raise UserError(f"{path}: {changed}") from changed
    running.progress, running.held_out = Progress(**progress), state["held_out"]
    own = tensors.get(f"rng-{live.accelerator.process_index}")
    if own is not None:
        checkpoint.rng_from_tensors(own)
    start.say(f"continuing from step {running.progress.step} ({path})")
