"""Which weights a run ends with: the last, the best of its evaluations, or those where it stopped early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import UserError
from tests.stages.conftest import far, rows, run, weights

pytestmark = pytest.mark.slow
Make = Callable[..., dict[str, Any]]
WORSE = {"learning_rate": 0.5, "lr_scheduler_type": "constant", "max_steps": 6}
"""Steps so long that the held-out loss grows after the first."""


def losses(chosen: dict[str, Any]) -> dict[int, float]:
    return {row["step"]: row["eval_loss"] for row in rows(chosen) if "eval_loss" in row}


def test_the_best_weights_are_saved_and_the_summary_says_which(options: Make) -> None:
    best = options("sft", name="best", eval_steps=1, load_best_model_at_end=True, save_total_limit=1, **WORSE)
    summary = run(best)
    by_step = losses(best)
    step = min((s for s in by_step if s), key=by_step.__getitem__)
    assert summary["best"]["step"] == step < summary["steps"] == 6
    assert summary["held_out"]["after"] == by_step[step] == summary["best"]["value"]
    assert summary["held_out"]["before"] == by_step[0]
    assert any(f"the weights of step {step} of 6 are saved" in note for note in summary["notes"])
    last = options("sft", name="last", eval_steps=1, **WORSE)
    assert run(last)["held_out"]["after"] == by_step[6]
    short = options("sft", name="short", **WORSE | {"max_steps": step})
    run(short)
    assert far(weights(best), weights(short)) == 0.0 < far(weights(best), weights(last))


def test_a_run_ends_early_and_goes_on_to_the_same_end_after_a_stop(options: Make) -> None:
    keys = {"eval_steps": 1, "early_stopping_patience": 2, "load_best_model_at_end": True}
    early = options("sft", name="early", **keys, **WORSE)
    summary = run(early)
    best = summary["best"]["step"]
    assert summary["steps"] == best + 2 == max(losses(early)) < summary["total_steps"] == 6
    assert any("2 evaluations in a row without a better" in note for note in summary["notes"])
    from tests.stages.test_coincide import _stopped

    broken = options("sft", name="broken", save_steps=1, **keys, **WORSE)
    _stopped(broken, 1)
    again = run(broken)
    assert again["best"] == summary["best"] and far(weights(early), weights(broken)) == 0.0


def test_never_is_never_and_a_share_is_a_share(options: Make) -> None:
    never = options("sft", name="never", eval_steps=0, max_steps=2)
    assert run(never)["held_out"] == {} and losses(never) == {}
    share = options("sft", name="share", eval_steps=0.5, logging_steps=0.5, save_steps=0.5)
    run(share)
    assert sorted(losses(share)) == [0, 2, 4]
    assert [row["step"] for row in rows(share) if "loss" in row] == [1, 2, 4]


def test_other_evaluations_are_another_run_where_they_choose_the_weights(
    options: Make, tmp_path: Path
) -> None:
    run(options("sft", eval_steps=1, load_best_model_at_end=True, max_steps=2))
    with pytest.raises(UserError, match="eval_steps: 1 -> 2"):
        run(options("sft", eval_steps=2, load_best_model_at_end=True, max_steps=2))
    run(options("sft", name="free", eval_steps=1, max_steps=2))
    assert run(options("sft", name="free", eval_steps=2, max_steps=2))["status"] == "done"


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": "adafactor"},
        {"optim": "adamw_8bit"},
        {"optim": "sgd", "learning_rate": 1.0},
        {"neftune_noise_alpha": 5},
    ],
    ids=str,
)
def test_stopping_is_not_stopping_whatever_moves_the_weights(options: Make, changes: dict[str, Any]) -> None:
    from tests.stages.test_coincide import _stopped

    whole, broken = (options("sft", name=name, save_steps=1, **changes) for name in ("whole", "broken"))
    run(whole)
    _stopped(broken, 2)
    run(broken)
    assert far(weights(whole), weights(broken)) == 0.0
    plain = options("sft", name="plain")
    run(plain)
    assert far(weights(whole), weights(plain)) > 1e-5


def test_smoothed_and_weighted_losses_are_trained_and_the_plain_one_is_held_out(options: Make) -> None:
    runs = {"plain": {}, "smooth": {"label_smoothing": 0.2}, "dft": {"use_dft_loss": True}}
    first, before = {}, {}
    for name, changes in runs.items():
        chosen = options("sft", name=name, max_steps=1, **changes)
        before[name] = run(chosen)["held_out"]["before"]
        first[name] = next(row["loss"] for row in rows(chosen) if "loss" in row)
    assert before["plain"] == before["smooth"] == before["dft"]
    assert len(set(first.values())) == 3 and first["dft"] < first["plain"]
