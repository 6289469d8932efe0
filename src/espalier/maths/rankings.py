"""Losses of reward models over a whole ranking, and where two answers' tokens part.

Legend: B branches, A trained tokens per branch, P pairs, T trees. scores: (B,) what the model says; said: (B,) what
people said, in any unit; tree_id: (B,) integers from 0 to T - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from espalier.maths.reduce import segment_mean, segment_sum


def plackett_luce(scores: Tensor, said: Tensor, tree_id: Tensor, n: int) -> Tensor:
    """-log of the probability that answers are chosen best first: sum over i of log sum_{j not above i} exp(s_j - s_i).

    Plackett 1975; Rafailov et al. 2023, eq. 18. Answers that people found equal are not compared with each other: each
    stands against those below. Of two answers it is the Bradley-Terry loss. n: T, how many trees. Returns (T,).

    >>> scores, said = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([3.0, 2.0, 1.0])
    >>> round(plackett_luce(scores, said, torch.tensor([0, 0, 0]), 1).exp().item(), 4)  # 3! orders
    6.0
    """
    below = (tree_id[:, None] == tree_id[None]) & (said[:, None] > said[None])
    against = below | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    rivals = scores[None].expand_as(against).masked_fill(~against, -torch.inf)
    return segment_sum(rivals.logsumexp(1) - scores, tree_id, n)


def squared_error(scores: Tensor, said: Tensor, tree_id: Tensor, n: int) -> Tensor:
    """Regression on what people said: the mean of (score - said)^2 over each tree's answers. Returns (T,).

    Wang et al. 2024 (HelpSteer 2), section 3: reward models of numbers that people gave.

    >>> scores, said = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0])
    >>> squared_error(scores, said, torch.tensor([0, 0]), 1).tolist()
    [0.5]
    """
    return segment_mean((scores - said) ** 2, tree_id, n)


def held_values(values: Tensor, scores: Tensor, lengths: Tensor) -> Tensor:
    """What a reward model says BEHIND each trained token, and behind the last one for all cells after it.

    values: (B, A) of the states before the trained tokens. scores: (B,) behind the last. lengths: (B,) trained tokens.
    Returns (B, A).

    >>> values, scores = torch.tensor([[0.1, 0.2, 0.0]]), torch.tensor([0.9])
    >>> [round(v, 1) for v in held_values(values, scores, torch.tensor([2]))[0].tolist()]
    [0.2, 0.9, 0.9]
    """
    after = torch.cat([values[:, 1:], scores[:, None]], 1)
    inside = torch.arange(values.shape[1], device=values.device) < lengths[:, None] - 1
    return torch.where(inside, after, scores[:, None])


def parted(labels: Tensor, lengths: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    """(P, A) True from the first token in which the two answers of a pair differ to the end of the longer one.

    The span over which DeepSpeed-Chat's reward model is trained (Yao et al. 2023). labels: (B, A) trained tokens.
    lengths: (B,). better, worse: (P,) indices of branches.

    >>> labels, lengths = torch.tensor([[5, 6, 7], [5, 9, 0]]), torch.tensor([3, 2])
    >>> parted(labels, lengths, torch.tensor([0]), torch.tensor([1])).tolist()
    [[False, True, True]]
    """
    places = torch.arange(labels.shape[1], device=labels.device)
    here, there = places < lengths[better, None], places < lengths[worse, None]
    differs = (labels[better] != labels[worse]) | (here != there)
    return (differs.cumsum(1) > 0) & (here | there)
