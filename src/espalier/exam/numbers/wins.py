"""Win rates: how often one model's answer is preferred, as it is, and as it would be at equal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from espalier.maths.ratio import ratio

RIDGE = 1e-3
"""Weight of the squared coefficients: without it a judge that always prefers the longer answer has no finite fit."""


def wins(values: Sequence[float], longer: Sequence[float]) -> dict[str, Any]:
    """Numbers of one model against another.

    Args:
        values: of each question what the model is worth in [0, 1]; 0.5 is a tie, or a judge that follows the order.
        longer: by how many characters the model's answer is longer than the other's.

    Returns:
        n, win_rate (ties half) with stderr, wins, ties, losses, and length_controlled.

    >>> found = wins([1.0, 0.5, 1.0, 0.0], [0, 0, 0, 0])
    >>> found["win_rate"], found["wins"], found["ties"], round(found["length_controlled"], 2)
    (0.625, 2, 1, 0.62)
    """
    estimate = ratio(torch.tensor(values), torch.ones(len(values)))
    return {
        "n": estimate.n,
        "win_rate": estimate.value,
        "stderr": estimate.stderr,
        "wins": sum(value > 0.5 for value in values),
        "ties": sum(value == 0.5 for value in values),
        "losses": sum(value < 0.5 for value in values),
        "length_controlled": length_controlled(values, longer),
    }


def length_controlled(values: Sequence[float], longer: Sequence[float]) -> float:
    """The win rate at equal length: sigmoid(t) of the fit P(win) = sigmoid(t + l tanh(longer / its deviation)).

    AlpacaEval's model (Dubois et al. 2024, "Length-Controlled AlpacaEval", eq. 1) without its term for the question's
    difficulty, which needs many models. Arguments as of `wins`.
    """
    difference = torch.tensor(longer, dtype=torch.float64)
    deviation = difference.std(correction=0)
    length = torch.tanh(difference / deviation) if deviation > 0 else torch.zeros_like(difference)
    inputs = torch.stack([torch.ones_like(length), length], 1)
    weights = _fitted(inputs, torch.tensor(values, dtype=torch.float64))
    return float(torch.sigmoid(weights[0]))


def _fitted(inputs: Tensor, values: Tensor) -> Tensor:
    """(2,) the weights of a logistic regression with `RIDGE`, by damped Newton steps; inputs: (n, 2), values: (n,)."""
    weights = torch.zeros(2, dtype=torch.float64)
    ridge = RIDGE * torch.eye(2, dtype=torch.float64)
    for _ in range(100):
        p = torch.sigmoid(inputs @ weights)
        gradient = inputs.T @ (p - values) + ridge @ weights
        curvature = (inputs * (p * (1 - p))[:, None]).T @ inputs + ridge
        step = torch.linalg.solve(curvature, gradient)
        weights = weights - step / max(1.0, float(step.norm()))
        if float(step.norm()) < 1e-10:
            break
    return weights
