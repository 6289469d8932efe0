"""Runs that must coincide: cut into micro-batches in any way, in one process or two, stopped or not."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import UserError
from tests.stages.conftest import far, finish, kill_at_checkpoint, rows, run, start, weights

STAGES = ["pretrain", "sft", "reward", "dpo", "ppo", "grpo"]
Make = Callable[..., dict[str, Any]]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_cutting_a_step_into_micro_batches_changes_nothing(stage: str, options: Make) -> None:
    found = []
    for size, accumulate in ((8, 1), (4, 2), (1, 8)):
        chosen = options(
            stage, name=f"cut{size}", per_device_train_batch_size=size, gradient_accumulation_steps=accumulate
        )
        run(chosen)
        found.append(weights(chosen))
    # Adam divides by the root of tiny squares, so rounding in the gradients grows; a wrong average would be 1e-3.
    assert far(found[0], found[1]) < 5e-5
    assert far(found[0], found[2]) < 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_padded_layout_trains_the_same_model(stage: str, options: Make) -> None:
    tree, padded = options(stage, name="tree", layout="tree"), options(stage, name="padded", layout="padded")
    told = run(tree), run(padded)
    assert [summary["layout"] for summary in told] == ["tree", "padded"]
    assert far(weights(tree), weights(padded)) < 2e-4
    assert told[0]["held_out"]["after"] == pytest.approx(told[1]["held_out"]["after"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo"])
def test_checkpointed_activations_train_the_same_model(stage: str, options: Make) -> None:
    kept, again = options(stage, name="kept"), options(stage, name="again", gradient_checkpointing=True)
    run(kept)
    run(again)
    assert far(weights(kept), weights(again)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_stopping_twice_is_not_stopping(stage: str, options: Make) -> None:
    whole = options(stage, name="whole", max_steps=8)
    run(whole)
    broken = options(stage, name="broken", max_steps=8, save_steps=1, save_total_limit=None)
    for stop_after in (1, 2):
        _stopped(broken, stop_after)
    summary = run(broken)
    assert summary["status"] == "done" and summary["steps"] == 8
    assert far(weights(whole), weights(broken)) == 0.0
    if stage == "ppo":
        assert far(weights(whole, "critic"), weights(broken, "critic")) == 0.0
    kept = [{k: v for k, v in row.items() if k not in TIMED} for row in rows(broken)]
    assert kept == [{k: v for k, v in row.items() if k not in TIMED} for row in rows(whole)]


TIMED = ("tokens_per_second", "memory_bytes")


def _stopped(chosen: dict[str, Any], checkpoints: int) -> None:
    """Run until so many checkpoints were written, then stop as a signal does."""
    from espalier.engine import loop, step
    from espalier.engine.loop import Stopped

    class Raised(loop.StopSignal):
        pass

    seen = {"n": 0}

    def totals(batches: Any, objective: Any, stop: bool, _real: Any = step._totals) -> list[float]:
        seen["n"] += 1
        return _real(batches, objective, seen["n"] > checkpoints)

    before, step._totals = step._totals, totals
    try:
        with pytest.raises(Stopped):
            run(chosen)
    finally:
        step._totals = before


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "number"), [("sft", signal.SIGTERM), ("ppo", signal.SIGKILL)])
def test_a_killed_process_goes_on(stage: str, number: signal.Signals, options: Make, tmp_path: Path) -> None:
    whole = options(stage, name="whole", max_steps=10)
    run(whole)
    broken = options(stage, name="broken", max_steps=10, save_steps=1)
    process = start(broken, tmp_path)
    kill_at_checkpoint(process, Path(broken["output_dir"]) / "broken", number)
    assert process.returncode in ({signal.SIGTERM: 3, signal.SIGKILL: -9}[number], 0), (
        "0: it was done already"
    )
    finish(start(broken, tmp_path))
    assert far(weights(whole), weights(broken)) == 0.0


@pytest.mark.slow
def test_a_finished_stage_is_skipped_and_a_changed_one_is_not(options: Make) -> None:
    chosen = options("sft")
    first = run(chosen)
    assert run(chosen) == first
    with pytest.raises(UserError, match=r"(?s)is finished.*learning_rate: 0.001 -> 0.0005.*resume=false"):
        run({**chosen, "learning_rate": 5e-4})
    assert run(chosen) == first, "a refusal touches nothing"
    again = run({**chosen, "learning_rate": 5e-4, "resume": False})
    assert again["fingerprint"] != first["fingerprint"] and again["started"] >= first["started"]
