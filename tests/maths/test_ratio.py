"""The estimate of a ratio: the mean's error where all units weigh alike, and the same number in one pass as in two."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from espalier.maths.ratio import Moments, ratio


def seen(x: list[float], w: list[float]) -> Moments:
    moments = Moments()
    for pair in zip(x, w, strict=True):
        moments.add(*pair)
    return moments


def test_a_share_has_the_binomial_error() -> None:
    right = [1.0] * 30 + [0.0] * 10
    found = ratio(torch.tensor(right), torch.ones(40))
    for value, stderr in (
        (found.value, found.stderr),
        (seen(right, [1.0] * 40).mean, seen(right, [1.0] * 40).stderr),
    ):
        assert value == 0.75
        assert stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 39))


def test_equal_weights_give_the_mean_and_its_error() -> None:
    numbers = torch.randn(50, dtype=torch.float64)
    found = ratio(3 * numbers, torch.full((50,), 3.0))
    assert found.n == 50
    assert found.value == pytest.approx(statistics.mean(numbers.tolist()))
    assert found.stderr == pytest.approx(statistics.stdev(numbers.tolist()) / math.sqrt(50))


def test_one_pass_and_two_agree_and_follow_the_book() -> None:
    w = torch.rand(200, dtype=torch.float64) * 30 + 1
    x = 1.7 * w + torch.randn(200, dtype=torch.float64)
    found, once = ratio(x, w), seen(x.tolist(), w.tolist())
    assert (once.mean, once.n) == (pytest.approx(found.value, rel=1e-12), found.n)
    assert once.stderr == pytest.approx(found.stderr, rel=1e-6)
    mean = sum(w.tolist()) / 200
    spread = sum((a - found.value * b) ** 2 for a, b in zip(x.tolist(), w.tolist(), strict=True)) / 199
    assert found.stderr == pytest.approx(math.sqrt(spread / 200) / mean)


def test_one_unit_says_nothing_about_spread() -> None:
    assert ratio(torch.tensor([6.0]), torch.tensor([3.0])) == (2.0, None, 1)
    assert seen([6.0], [3.0]).stderr is None
    with pytest.raises(AssertionError, match="non-empty"):
        ratio(torch.tensor([]), torch.tensor([]))
