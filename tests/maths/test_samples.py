"""What several answers to a prompt say together, against all subsets and other implementations."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations
from statistics import mean

import numpy as np
import pytest
import torch

from espalier.maths.samples import best_of, explained_variance, same_pairs, within_correlation

torch.manual_seed(0)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_subsets(n: int) -> None:
    scores, values = torch.rand(3, 5), torch.rand(3, 5)
    found = best_of(scores, values, n)
    for s, v, estimate in zip(scores.tolist(), values.tolist(), found.tolist(), strict=True):
        chosen = [v[max(subset, key=s.__getitem__)] for subset in combinations(range(5), n)]
        assert estimate == pytest.approx(mean(chosen), abs=1e-7)
    assert n == 1 or not torch.allclose(found, values.double().mean(1)), "the best is not any one"


def test_of_equal_scores_each_is_taken_as_often_whatever_their_order() -> None:
    scores, values = [1.0, 1.0, 0.0, 1.0], [4.0, 0.0, 9.0, 1.0]
    found = {
        round(best_of(torch.tensor([s]), torch.tensor([v]), 2).item(), 9)
        for order in permutations(range(4))
        for s, v in [([scores[i] for i in order], [values[i] for i in order])]
    }
    # With two draws the one score of 0 is never the best: the mean of the other three.
    assert found == {round(5 / 3, 9)}


def test_best_of_n_is_unbiased() -> None:
    """Of 4 answers that are drawn again and again, the estimate for 2 is the expected larger of two fresh draws."""
    answers = torch.rand(40_000, 4)
    assert best_of(answers, answers, 2).mean().item() == pytest.approx(2 / 3, abs=0.005)
    assert best_of(answers, answers, 4).mean().item() == pytest.approx(4 / 5, abs=0.005)


def test_the_best_by_a_score_against_the_value_is_below_any_one() -> None:
    values = torch.rand(200, 4)
    curve = [best_of(-values, values, n).mean().item() for n in (1, 2, 4)]
    assert all(b < a - 0.1 for a, b in pairwise(curve))


def test_same_pairs_are_counted() -> None:
    for answers in (["a"] * 4, ["a", "b", "a", "b"], ["a", "b", "c", "d"], ["a", "a", "a", "b"]):
        pairs = [x == y for x, y in combinations(answers, 2)]
        assert same_pairs(answers) == mean(pairs)


def test_correlation_within_prompts_is_not_fooled_by_prompts() -> None:
    """Between prompts x and y go together, within each of them they go against each other."""
    level = torch.arange(50.0)[:, None] * 10
    wave = torch.rand(50, 4)
    x, y = level + wave, level - 2 * wave
    assert np.corrcoef(x.flatten(), y.flatten())[0, 1] > 0.99
    assert within_correlation(x, y) == pytest.approx(-1.0, abs=1e-6)
    noisy = y + torch.rand(50, 4)
    left = [(v - v.mean(1, keepdim=True)).flatten().numpy() for v in (x, noisy)]
    assert within_correlation(x, noisy) == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-6)


def test_what_does_not_differ_has_no_correlation_and_no_explained_variance() -> None:
    x = torch.rand(5, 3)
    assert within_correlation(x, torch.full((5, 3), 0.1)) is None
    assert within_correlation(x[:, :1], x[:, 1:2]) is None, "one answer a prompt says nothing within prompts"
    assert explained_variance(x[0], torch.full((3,), 0.1)) is None


def test_explained_variance_of_a_perfect_a_constant_and_a_wrong_critic() -> None:
    returns = torch.rand(1000)
    assert explained_variance(returns + 3, returns) == pytest.approx(1.0, abs=1e-6), "a shift is no variance"
    assert explained_variance(torch.full_like(returns, 9.0), returns) == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0, abs=1e-6)
