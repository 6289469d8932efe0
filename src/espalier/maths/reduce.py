"""Sums, means and spreads over the real cells of a grid, and over the branches of each tree.

Legend: B branches, A trained tokens per branch, N trained tokens in all (the True cells of a mask).

A (B, A) grid is padded on the right; `mask` is True where a cell holds a real token. A masked cell may
hold any number, infinity and NaN included: it is replaced before anything is added up. Sums over a whole step
and over ranks are the loop's business; these functions see only the tensors that they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the cells where `mask` is True.

    x, mask: the same shape (mask bool). dim: the dimension that is summed away; None sums everything to a scalar.
    An empty selection sums to 0.

    >>> masked_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, True])).item()
    5.0
    """
    kept = x.masked_fill(~mask, 0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the cells where `mask` is True; shapes as in `masked_sum`.

    An empty selection has mean 0, so that a branch without a real token adds nothing instead of NaN.

    >>> masked_mean(
    ...     torch.tensor([[1.0, 2.0], [4.0, 9.0]]), torch.tensor([[True, True], [True, False]]), 1
    ... ).tolist()
    [1.5, 4.0]
    """
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance, sum((x - mean)^2) / (N - 1), of the cells where `mask` is True; a scalar.

    Unbiased because a rollout is a small sample of the policy, and because PPO codes since OpenAI's (Ziegler
    et al. 2019) and TRL's whiten so; N < 2 gives 0.

    >>> masked_var(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False])).item()
    2.0
    """
    squares = (x - masked_mean(x, mask)) ** 2
    return masked_sum(squares, mask) / (mask.sum() - 1).clamp(min=1)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the real cells; masked cells become 0.

    x, mask: (B, A). With `shift_mean` False the mean is put back, so that only the scale changes (used for
    rewards, whose sign means something). The variance is `masked_var`'s.

    >>> grid = torch.tensor([[1.0, 3.0, 7.0]])
    >>> [round(v, 4) for v in whiten(grid, torch.tensor([[True, True, False]]))[0].tolist()]
    [-0.7071, 0.7071, 0.0]
    """
    mean = masked_mean(x, mask)
    scaled = (x - mean) * torch.rsqrt(masked_var(x, mask) + 1e-8)
    return (scaled if shift_mean else scaled + mean).masked_fill(~mask, 0)


def segment_sum(x: Tensor, index: Tensor, n: int) -> Tensor:
    """Sum of the entries of each segment: out[s] = sum of x[b] with index[b] == s.

    x: (B,). index: (B,) integers in [0, n), such as `tree_id`. Returns (n,); a segment without entries has 0.

    >>> segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 1]), 3).tolist()
    [1.0, 6.0, 0.0]
    """
    return x.new_zeros(n).index_add(0, index, x)


def segment_mean(x: Tensor, index: Tensor, n: int) -> Tensor:
    """Mean of the entries of each segment; shapes as in `segment_sum`, a segment without entries has 0.

    >>> segment_mean(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 1]), 3).tolist()
    [1.0, 3.0, 0.0]
    """
    count = segment_sum(torch.ones_like(x), index, n)
    return segment_sum(x, index, n) / count.clamp(min=1)
