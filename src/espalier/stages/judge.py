"""The held-out number of a stage with its standard error, from units that all ranks have judged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from espalier.stages.stage import Units


@dataclass(frozen=True)
class Judged:
    """A ratio of sums over n independent units, and its standard error."""

    value: float
    stderr: float
    n: int


def ratio(numerators: torch.Tensor, denominators: torch.Tensor) -> Judged:
    """sum(x) / sum(w) over n units, with the standard error of a ratio estimator (Cochran 1977, eq. 6.13).

    Where every w is 1 it is the mean and its usual standard error. One unit has no spread: 0.

    >>> ratio(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
    Judged(value=0.5, stderr=0.5, n=2)
    """
    x, w = numerators.double(), denominators.double()
    n, total = len(x), float(w.sum())
    value = float(x.sum()) / total
    if n < 2:
        return Judged(value, 0.0, n)
    residual = x - value * w
    return Judged(value, math.sqrt(float((residual**2).sum()) * n / (n - 1)) / total, n)


def judged(units: Units | None, accelerator: Accelerator) -> Judged | None:
    """The estimate over the units of all ranks; None where no rank has any."""
    own = [] if units is None else [(units[0].tolist(), units[1].tolist())]
    everything = gather_object(own) if accelerator.num_processes > 1 else own
    numerators = torch.tensor([x for part, _ in everything for x in part])
    denominators = torch.tensor([w for _, part in everything for w in part])
    if len(numerators) == 0 or float(denominators.sum()) == 0:
        return None
    return ratio(numerators, denominators)
