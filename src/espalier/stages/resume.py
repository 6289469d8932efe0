"""A run's checkpoint: everything that an exact continuation needs, and putting it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from espalier.engine import checkpoint, strategy
from espalier.engine.loop import Progress
from espalier.errors import UserError
from espalier.options import RunOptions
from espalier.stages.earlier import CHECKPOINTS, listed, noted, read_summary, ways_out
from espalier.stages.provenance import MadeFrom
from espalier.stages.running import Running, Start


def checkpoints(folder: Path) -> Path:
    """Where the checkpoints of a run lie."""
    return folder / CHECKPOINTS


def save(running: Running, step: int) -> None:
    """Write the checkpoint of a step; all ranks call it, the first one writes."""
    start, live, parts = running.start, running.live, running.parts
    accelerator = live.accelerator
    own = [(accelerator.process_index, checkpoint.rng_to_tensors())]
    rngs = gather_object(own) if accelerator.num_processes > 1 else own
    tensors = {
        "model": strategy.whole_parameters(accelerator, live.module),
        "optimizer": strategy.whole_moments(accelerator, live.module, running.optimizer),
        **{f"rng-{rank}": held for rank, held in rngs},
        **{f"average-{name}": dict(m.named_parameters()) for name, m in parts.averages.items()},
    }
    state = {
        "made_from": start.made_from.as_json(),
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
    """Go on from the checkpoint that the options name, or the newest whole one; remove them where a run starts anew.

    Raises:
        UserError: the checkpoint was written under other options or over other content, or none is whole.
    """
    start, live, parts = running.start, running.live, running.parts
    if start.from_start:
        if start.is_main:
            checkpoint.clear_checkpoints(checkpoints(start.folder))
        live.accelerator.wait_for_everyone()
        return
    found = _found(start)
    if found is None:
        return
    path, tensors, state = found
    _compare(start, path, state)
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
        raise UserError(f"{path}: {changed}") from changed
    running.progress, running.held_out = Progress(**progress), state["held_out"]
    own = tensors.get(f"rng-{live.accelerator.process_index}")
    if own is not None:
        checkpoint.rng_from_tensors(own)
    start.say(f"continuing from step {running.progress.step} ({path})")


def _found(start: Start) -> tuple[Path, checkpoint.Tensors, dict[str, Any]] | None:
    """The checkpoint to go on from; damaged ones that are passed over are said."""
    wanted = start.option(RunOptions).resume
    if isinstance(wanted, str):
        return Path(wanted), *checkpoint.load_checkpoint(Path(wanted))
    newest, passed = checkpoint.newest_whole(checkpoints(start.folder))
    faults = "\n".join(f"  {path}: {problem}" for path, problem in passed.items())
    if newest is None:
        if passed:
            raise UserError(
                f"{checkpoints(start.folder)}: no checkpoint here is whole, and the run does not start from 0 unasked:\n"
                f"{faults}\n{ways_out(start.folder)}"
            )
        return None
    if passed:
        start.say(f"damaged checkpoints are passed over, and {newest.name} is taken:\n{faults}")
    return newest, *checkpoint.read_checkpoint(newest)


def _compare(start: Start, path: Path, state: dict[str, Any]) -> None:
    """A continuation goes on with what the run began with, or not at all."""
    before = MadeFrom.from_json(state.get("made_from")) or noted(start.folder, read_summary(start.folder))
    if before is None:
        start.say(
            f"{path} has no note of what it was made from (an earlier version wrote it); nothing is compared"
        )
        return
    differences = start.made_from.differences(before)
    if differences:
        raise UserError(
            f"{path}: this checkpoint was made from other options or content than these:\n{listed(differences)}\n"
            + ways_out(start.folder)
        )
