"""A ratio of sums over independent units, with its standard error (Cochran 1977, eq. 6.13).

The units are what was drawn apart from each other: a record with its nll (x) and its tokens (w), a tree with its right
pairs and all its pairs. Where every w is 1 the ratio is the mean, and the error its usual one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """sum(x) / sum(w) over n units, and its standard error (None where n < 2)."""

    value: float
    stderr: float | None
    n: int


def ratio(numerators: Tensor, denominators: Tensor) -> Estimate:
    """The estimate of n units that are all at hand; numerators, denominators: (n,), x and w of each; n >= 1.

    >>> from torch import tensor
    >>> ratio(tensor([1.0, 0.0]), tensor([1.0, 1.0]))
    Estimate(value=0.5, stderr=0.5, n=2)
    """
    assert numerators.dim() == 1 and len(numerators) > 0, (
        "an estimate needs a flat, non-empty list of numbers"
    )
    x, w = numerators.double(), denominators.double()
    n, total = len(x), float(w.sum())
    value = float(x.sum()) / total
    residual = x - value * w
    return Estimate(value, ratio_error(float((residual**2).sum()), n, total), n)


def ratio_error(squares: float, n: int, total: float) -> float | None:
    """The standard error of sum(x) / sum(w).

    Args:
        squares: the sum of (x - ratio * w)^2.
        n: units; a single one says nothing about spread, and there is no error: None.
        total: the sum of w.

    >>> ratio_error(0.5, 2, 2.0), ratio_error(0.5, 1, 2.0)
    (0.5, None)
    """
    return math.sqrt(squares * n / (n - 1)) / total if n > 1 else None


@dataclass
class Moments:
    """The same estimate of pairs that are seen once, in constant memory.

    The squares are put together from sums, so an error that is smaller than the ratio by eight digits is lost in
    rounding; `ratio` keeps it.

    >>> moments = Moments()
    >>> moments.add(1.0), moments.add(0.0)
    (None, None)
    >>> moments.mean, moments.stderr
    (0.5, 0.5)
    """

    n: int = 0
    x: float = 0.0
    w: float = 0.0
    xx: float = 0.0
    xw: float = 0.0
    ww: float = 0.0

    def add(self, x: float, w: float = 1.0) -> None:
        """Count one unit."""
        self.n += 1
        self.x += x
        self.w += w
        self.xx += x * x
        self.xw += x * w
        self.ww += w * w

    @property
    def mean(self) -> float:
        """sum(x) / sum(w)."""
        return self.x / self.w

    @property
    def stderr(self) -> float | None:
        """See `ratio_error`."""
        squares = max(0.0, self.xx - 2 * self.mean * self.xw + self.mean**2 * self.ww)
        return ratio_error(squares, self.n, self.w)
