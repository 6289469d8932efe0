"""A run's checkpoint: everything that an exact continuation needs, and putting it back."""

from __future__ import annotations

from pathlib import Path

from accelerate.utils import gather_object

from espalier.engine import checkpoint, strategy
from espalier.engine.finite import check_weights
from espalier.engine.loop import Progress
from espalier.errors import UserError
from espalier.options import RunOptions
from espalier.stages.running import Running


def checkpoints(folder: Path) -> Path:
    """Where the checkpoints of a run lie."""
    return folder / "checkpoints"


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
        **{f"rng-{rank}": held for rank, held in rngs},
        **{f"average-{name}": dict(m.named_parameters()) for name, m in parts.averages.items()},
    }
    state = {
        "fingerprint": start.fingerprint,
        "progress": running.progress.state(),
        "feed": running.feed.place(),
        "held_out": running.held_out,
        "controllers": {name: held.state() for name, held in parts.controllers.items()},
    }
    if start.is_main:
        keep = start.option(RunOptions).save_total_limit
        checkpoint.save_checkpoint(checkpoints(start.folder), step, tensors, state, keep)
    accelerator.wait_for_everyone()


def resume(running: Running) -> None:
    """Go on from the checkpoint that the options name, or the last one; with ``resume: false`` remove them.

    Raises:
        UserError: the checkpoint was written under other options, or it is damaged.
    """
    start, live, parts = running.start, running.live, running.parts
    wanted = start.option(RunOptions).resume
    if wanted is False:
        if start.is_main:
            checkpoint.clear_checkpoints(checkpoints(start.folder))
        live.accelerator.wait_for_everyone()
        return
    last = checkpoint.latest_checkpoint(checkpoints(start.folder))
    found = Path(wanted) if isinstance(wanted, str) else last
    if found is None:
        return
    tensors, state = checkpoint.load_checkpoint(found)
    if state["fingerprint"] != start.fingerprint:
        raise UserError(
            f"{found}: this checkpoint was written under other options than these. "
            "Restore them, set resume=false to start again, or choose another output_dir."
        )
    progress = state["progress"]
    strategy.set_parameters(live.accelerator, live.module, tensors["model"])
    strategy.set_moments(
        live.accelerator, live.module, running.optimizer, tensors["optimizer"], progress["step"]
    )
    for name, average in parts.averages.items():
        for key, parameter in average.named_parameters():
            parameter.data.copy_(tensors[f"average-{name}"][key])
    for name, held in parts.controllers.items():
        held.restore(state["controllers"][name])
    try:
        running.feed.restore(state["feed"])
    except ValueError as changed:
        raise UserError(f"{found}: {changed}") from changed
    running.progress, running.held_out = Progress(**progress), state["held_out"]
    own = tensors.get(f"rng-{live.accelerator.process_index}")
    if own is not None:
        checkpoint.rng_from_tensors(own)
    start.say(f"continuing from step {running.progress.step} ({found})")
