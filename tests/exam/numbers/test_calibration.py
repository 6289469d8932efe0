"""Whether the calibration of a reward model is told: known chances, and the same once more in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.exam.numbers.calibration import calibration


def drawn(scale: float, n: int = 4000) -> list[dict[str, list[float]]]:
    """Pairs whose better answer is the likelier by Bradley and Terry, from a model whose scores are `scale` times theirs."""
    maker = np.random.default_rng(0)
    scores = maker.normal(size=(n, 2)) * 1.5
    first = maker.random(n) < 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    return [
        {"scores": (scale * pair).tolist(), "preference": [1.0, 0.0] if better else [0.0, 1.0]}
        for pair, better in zip(scores, first, strict=True)
    ]


@pytest.mark.parametrize(("scale", "low", "high"), [(1.0, 0.0, 0.02), (6.0, 0.1, 0.3), (0.2, 0.1, 0.3)])
def test_a_model_that_is_too_sure_or_too_shy_is_found_out(scale: float, low: float, high: float) -> None:
    found = calibration(drawn(scale))
    assert found is not None and low <= found["error"] <= high
    sure = sum(row["n"] * row["confidence"] for row in found["bins"]) / found["pairs"]
    right = sum(row["n"] * row["accuracy"] for row in found["bins"]) / found["pairs"]
    if scale != 1.0:
        assert (sure > right) == (scale > 1)


def test_the_same_in_plain_numpy() -> None:
    lines = drawn(2.0, 300)
    margins = np.array([x["scores"][0] - x["scores"][1] for x in lines])
    sure = 1 / (1 + np.exp(-abs(margins)))
    right = (margins > 0) == np.array([x["preference"][0] > 0 for x in lines])
    order = np.argsort(sure)
    parts = np.array_split(order, 10)
    expected = sum(len(p) / 300 * abs(right[p].mean() - sure[p].mean()) for p in parts)
    found = calibration(lines)
    assert found is not None and found["error"] == pytest.approx(expected, abs=1e-9) and expected > 0.01


def test_no_bin_is_a_pair_or_two() -> None:
    """A model that is sure of nearly all: bins of equal width would hold single pairs between 50 and 90 %."""
    found = calibration(drawn(8.0, 300))
    assert found is not None and [row["n"] for row in found["bins"]] == [30] * 10
    few = calibration(drawn(8.0, 25))
    assert few is not None and [row["n"] for row in few["bins"]] == [12, 13]


def test_rankings_ties_and_nothing() -> None:
    ranking = {"scores": [3.0, 1.0, 1.0], "preference": [2.0, 1.0, 1.0]}
    found = calibration([ranking, {"scores": [], "preference": [1.0, 0.0]}, {"id": "left out"}])
    assert found is not None and found["pairs"] == 2
    tied = calibration([{"scores": [1.0, 1.0], "preference": [1.0, 0.0]}])
    assert tied is not None and tied["bins"] == [{"confidence": 0.5, "accuracy": 0.5, "n": 1}]
    assert calibration([{"scores": [1.0, 2.0], "preference": [1.0, 1.0]}]) is None
