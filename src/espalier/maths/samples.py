"""What several answers to one prompt say together: best of n, sameness, length; and how well a critic foresaw.

Legend: P prompts, S answers to each of them, N tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor


def best_of(scores: Tensor, values: Tensor, n: int) -> Tensor:
    """The expected value of the answer with the best score among n that are drawn from S, for each prompt.

    The mean over all subsets of size n, so unbiased for n fresh answers (the estimator of pass@k, Chen et al. 2021, eq. 1,
    for any number): the i-th best of S is the best of C(S - i, n - 1) of the C(S, n) subsets. Of answers with one score
    each is taken as often. With values = scores it is the best-of-n curve of the reward (Gao, Schulman & Hilton 2023).

    Args:
        scores: (P, S) by which the best is chosen.
        values: (P, S) what is averaged.
        n: from 1 to S.

    Returns:
        (P,) in float64.

    >>> scores = torch.tensor([[1.0, 2.0, 4.0]])
    >>> [round(best_of(scores, scores, n).item(), 4) for n in (1, 2, 3)]
    [2.3333, 3.3333, 4.0]
    """
    size = scores.shape[1]
    assert 1 <= n <= size and scores.shape == values.shape
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranked = scores.gather(1, order)
    alike = (ranked[:, :, None] == ranked[:, None, :]).double()
    fair = (alike @ values.double().gather(1, order)[:, :, None])[:, :, 0] / alike.sum(2)
    chances = [comb(size - 1 - i, n - 1) / comb(size, n) for i in range(size)]
    return fair @ torch.tensor(chances, dtype=torch.float64)


def same_pairs(answers: Sequence[str]) -> float:
    """The share of pairs of answers that are the same, in [0, 1]; two answers or more.

    An estimate of the chance that two answers to the prompt are the same (Simpson 1949).

    >>> round(same_pairs(["yes", "yes", "no"]), 4)
    0.3333
    """
    assert len(answers) > 1
    return sum(comb(times, 2) for times in Counter(answers).values()) / comb(len(answers), 2)


def within_correlation(x: Tensor, y: Tensor) -> float | None:
    """Pearson's correlation of what x and y say about a prompt's answers beyond the prompt's own mean, in [-1, 1].

    Prompts differ in how long their answers must be and in how well they can be answered; of two answers to one prompt
    only the reward's taste remains. None where x or y is the same for all answers to each prompt.

    Args:
        x, y: (P, S).

    >>> within_correlation(torch.tensor([[1.0, 2.0], [11.0, 12.0]]), torch.tensor([[5.0, 4.0], [3.0, 2.0]]))
    -1.0
    """
    a, b = (v.double() - v.double().mean(1, keepdim=True) for v in (x, y))
    spread = float((a**2).sum().sqrt() * (b**2).sum().sqrt())
    # What is left of equal numbers after their mean is rounding.
    if float(a.abs().max()) <= 1e-9 * max(1.0, float(x.abs().max())) or float(b.abs().max()) <= 1e-9 * max(
        1.0, float(y.abs().max())
    ):
        return None
    return max(-1.0, min(1.0, float((a * b).sum()) / spread))


def explained_variance(values: Tensor, returns: Tensor) -> float | None:
    """1 - Var(returns - values) / Var(returns): 1 for a critic that foresees all, 0 for one that says one number.

    Below 0 it is worse than that. Both (N,), one number a token. None where the returns don't differ.

    >>> explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    1.0
    """
    values, returns = values.double(), returns.double()
    spread = float(returns.var(correction=0))
    if spread <= 1e-12:
        return None
    return 1.0 - float((returns - values).var(correction=0)) / spread
