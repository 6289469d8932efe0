"""A run has one precision from its beginning to its end, and what coincides in float32 coincides in bf16 too.

Tolerances of bf16 are derived, not tried out. A number of bf16 is off by at most u = 2^-9 of itself. A token's logprob
in the tiny model comes through `ROUNDINGS` such roundings in a row (the embedding, seven products and the attention of
each of two layers, the head), each of numbers no larger than the largest logit, so two ways to compute it differ by
2 * ROUNDINGS * u * largest at most, and so does a mean of them. Roundings of opposite signs make it less in truth.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.engine import precision
from tests.stages.conftest import far, rows, run, weights
from tests.stages.test_coincide import STAGES, _stopped

Make = Callable[..., dict[str, Any]]
U = 2.0**-9
ROUNDINGS = 2 + 2 * 8
LARGEST_LOGIT = 1.0
"""Of the fresh tiny model: its logits have a standard deviation of 0.1."""
LOGPROB = 2 * ROUNDINGS * U * LARGEST_LOGIT
"""How far two logprobs in bf16 may be apart, in nats: 0.07."""


def first(made: dict[str, Any]) -> dict[str, float]:
    """The numbers of the first step: no weight has been changed yet, so rounding is all that differs."""
    return next(row for row in rows(made) if "loss" in row)


def bf16(options: Make, stage: str, **changes: Any) -> dict[str, Any]:
    return options(stage, precision="bf16", **changes)


@pytest.mark.slow
def test_bf16_is_really_computed(options: Make) -> None:
    half, full = bf16(options, "sft", name="half"), options("sft", name="full")
    assert run(half)["precision"] == "bf16" and run(full)["precision"] == "fp32"
    assert 0 < abs(first(half)["loss"] - first(full)["loss"]) < LOGPROB


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_micro_batches_coincide_in_bf16(stage: str, options: Make) -> None:
    one = bf16(options, stage, name="one", per_device_train_batch_size=8, max_steps=1)
    eight = bf16(
        options,
        stage,
        name="eight",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        max_steps=1,
    )
    run(one)
    run(eight)
    assert abs(first(one)["loss"] - first(eight)["loss"]) < LOGPROB
    # The gradient of a weight passes as many roundings as the logprob; a wrong average would be a factor of 8.
    assert first(one)["grad_norm"] == pytest.approx(first(eight)["grad_norm"], rel=2 * ROUNDINGS * U)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_layouts_coincide_in_bf16(stage: str, options: Make) -> None:
    tree, padded = (bf16(options, stage, name=k, layout=k, max_steps=1) for k in ("tree", "padded"))
    assert [run(made)["layout"] for made in (tree, padded)] == ["tree", "padded"]
    assert abs(first(tree)["loss"] - first(padded)["loss"]) < LOGPROB
    assert first(tree)["grad_norm"] == pytest.approx(first(padded)["grad_norm"], rel=2 * ROUNDINGS * U)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_stop_is_no_stop_in_bf16(stage: str, options: Make) -> None:
    """To the last bit: the same products of the same numbers."""
    whole = bf16(options, stage, name="whole")
    run(whole)
    broken = bf16(options, stage, name="broken", save_steps=1)
    _stopped(broken, 1)
    run(broken)
    assert far(weights(whole), weights(broken)) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "ppo", "grpo", "reward"])
def test_a_first_step_in_bf16_is_where_it_must_be(stage: str, options: Make) -> None:
    """The run refuses it otherwise; how near it is, beside the bound of the rounding."""
    made = bf16(options, stage, max_steps=1)
    run(made)
    numbers = first(made)
    if stage == "dpo":  # four sums of at most 40 logprobs, times beta, halved by the slope of the loss
        assert abs(numbers["loss"] - 0.6931) < 0.1 * 4 * 40 * LOGPROB / 2
    if stage in ("ppo", "grpo"):
        assert abs(numbers["ratio"] - 1) < LOGPROB
        assert abs(numbers["kl"]) < LOGPROB * numbers["answer_tokens"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make this machine one on which `precision: auto` is what is said."""

    def is_now(best: str) -> None:
        monkeypatch.delenv(precision.OVERRIDE, raising=False)
        monkeypatch.setattr(precision, "best_precision", lambda device: best)

    return is_now


def test_auto_is_decided_and_written_down(options: Make, machine: Callable[[str], None]) -> None:
    made = options("sft", precision="auto", save_steps=1)
    machine("bf16")
    _stopped(made, 1)
    folder = Path(made["output_dir"]) / "sft"
    assert json.loads((folder / "summary.json").read_text())["precision"] == "bf16"
    assert "precision: bf16" in (folder / "config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_continuation_keeps_it_on_another_machine(
    before: str, after: str, options: Make, machine: Callable[[str], None]
) -> None:
    whole = options("sft", name="whole", precision=before)
    run(whole)
    made = options("sft", name="moved", precision="auto", save_steps=1)
    machine(before)
    _stopped(made, 1)
    machine(after)
    summary = run(made)
    assert summary["precision"] == before and summary["status"] == "done"
    assert far(weights(whole), weights(made)) == 0.0
    assert run(made) == summary, "done already, on whichever machine"


def test_a_run_from_the_beginning_decides_anew(options: Make, machine: Callable[[str], None]) -> None:
    made = options("sft", precision="auto", max_steps=1)
    machine("bf16")
    assert run(made)["precision"] == "bf16"
    machine("fp32")
    assert run({**made, "resume": False})["precision"] == "fp32"


@pytest.mark.slow
def test_two_stages_of_two_precisions_in_one_process(options: Make) -> None:
    """As a pipeline or a notebook has them; each computes in its own."""
    losses = []
    for name, wanted in (("a", "bf16"), ("b", "fp32"), ("c", "bf16")):
        made = options("sft", name=name, precision=wanted, max_steps=1)
        assert run(made)["precision"] == wanted
        losses.append(first(made)["loss"])
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.slow
def test_every_fingerprint_has_the_precision(options: Make) -> None:
    found = {run(options("sft", name=p, precision=p, max_steps=1))["fingerprint"] for p in ("bf16", "fp32")}
    assert len(found) == 2
