"""The losses of every stage, as pure functions of tensors.

Legend: B branches, A trained tokens per branch, N trained tokens in all, P pairs.

Every loss comes back UNREDUCED, one number a token or a pair. The loop sums the real ones and divides by their
count in the whole step over all ranks, so that the loss does not depend on how a step is cut into micro-batches.
Padded cells of a (B, A) grid must be finite (the forward leaves zeros there); what they hold changes nothing
once they are masked out of the sum.

Left out: entropy bonuses and auxiliary losses of routers (the stage adds them), sequence-level ratios (GSPO).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


def nll(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood, -log p(token), in nats.

    logprobs: any shape, of the tokens that are trained. Returns the same shape.

    >>> round(nll(torch.tensor(0.25).log()).item(), 4)
    1.3863
    """
    return -logprobs


def pairwise_log_sig(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Bradley-Terry loss of a reward model: -log sigmoid(chosen - rejected).

    Ouyang et al. 2022 (InstructGPT), eq. 1. chosen, rejected: (P,) scalar scores. Returns (P,), at least 0; ln 2 where
    the two scores are equal.

    >>> round(pairwise_log_sig(torch.tensor(2.0), torch.tensor(1.0)).item(), 4)
    0.3133
    """
    return -logsigmoid(chosen - rejected)


def pairwise_log_exp(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The same loss in its other spelling: log(1 + exp(rejected - chosen)).

    Written as max(d, 0) + log1p(exp(-|d|)) with d = rejected - chosen: exp never sees a positive number, so it cannot
    overflow. The gradient in d is sigmoid(d) at every d, also at 0. chosen, rejected: (P,). Returns (P,).

    >>> round(pairwise_log_exp(torch.tensor(2.0), torch.tensor(1.0)).item(), 4)
    0.3133
    """
    d = rejected - chosen
    # logaddexp is that very form, with the right gradient at the kink that max and |.| have at 0.
    return torch.logaddexp(d, torch.zeros_like(d))


def ranking_pairs(scores: Tensor, tree_id: Tensor) -> tuple[Tensor, Tensor]:
    """All ordered pairs of branches of one tree whose scores differ: K answers make up to K(K-1)/2 pairs.

    Ouyang et al. 2022 train on all pairs of a prompt at once. scores: (B,) what people (not the model) said.
    tree_id: (B,) integers. Returns (better, worse): two (P,) index tensors into the branches, sorted by `better` and
    then `worse`. Equal scores make no pair.

    >>> better, worse = ranking_pairs(torch.tensor([3.0, 1.0, 1.0, 9.0]), torch.tensor([0, 0, 0, 1]))
    >>> better.tolist(), worse.tolist()
    ([0, 0], [1, 2])
    """
    same_tree = tree_id[:, None] == tree_id[None, :]
    better, worse = ((scores[:, None] > scores[None, :]) & same_tree).nonzero(as_tuple=True)
    return better, worse


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimisation: -(1 - e) log sigmoid(h) - e log sigmoid(-h), h = beta * (log-ratio margin).

    Rafailov et al. 2023, eq. 7; with label_smoothing e > 0 (the chance that a label is flipped, in [0, 0.5)) the
    conservative DPO of Mitchell 2023. Each tensor: (P,) log-probability of a whole completion (a sum over its tokens).
    margin = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected). Returns (P,); ln 2 where policy and
    reference agree.

    >>> zero = torch.tensor(0.0)
    >>> round(dpo(torch.tensor(2.0), zero, zero, zero, beta=0.5).item(), 4)
    0.3133
    """
    logits = beta * _margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def ipo(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """Identity preference optimisation: (margin - 1 / (2 beta))^2.

    Azar et al. 2023, eq. 17 (their tau is our beta). Each tensor: (P,) log-probability AVERAGED over the tokens of the
    completion. The paper writes sequence log-probabilities; its authors confirmed to TRL's that the published results
    use the averages, without which the square grows with the length. Returns (P,).

    >>> zero = torch.tensor(0.0)
    >>> ipo(torch.tensor(2.0), zero, zero, zero, beta=0.5).item()
    1.0
    """
    return (_margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected) - 1 / (2 * beta)) ** 2


def hinge(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """Hinge on the DPO margin: max(0, 1 - beta * margin).

    Zhao et al. 2023 (SLiC-HF), with the reference as in Liu et al. 2024 (RSO). Each tensor: (P,) log-probability of a
    whole completion. Returns (P,); 1 where policy and reference agree.

    >>> zero = torch.tensor(0.0)
    >>> hinge(torch.tensor(1.5), zero, zero, zero, beta=0.5).item()
    0.25
    """
    return relu(1 - beta * _margin(policy_chosen, policy_rejected, ref_chosen, ref_rejected))


def _margin(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
) -> Tensor:
    return (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss of pairs, and what a stage must know to train with it.

    Attributes:
        function: (P,) logprobs under the policy of chosen and rejected, the same under the reference, and ``beta`` > 0
            -> (P,); where it `smooths`, ``label_smoothing`` in [0, 0.5) too.
        reduction: whether an answer's logprob is the sum over its tokens or their mean.
        at_start: beta -> the loss where policy and reference agree; None where any value is possible.
        source: where the formula stands.
        smooths: whether it takes ``label_smoothing``.
        reference: whether it compares with a reference; one that does not is given zeros in its place.
    """

    function: Callable[..., Tensor]
    reduction: Literal["sum", "mean"]
    at_start: Callable[[float], float] | None
    source: str
    smooths: bool = False
    reference: bool = True


PREFERENCES: dict[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(
        dpo, "sum", lambda beta: math.log(2), "Rafailov et al. 2023, eq. 7; Mitchell 2023", smooths=True
    ),
    "ipo": PreferenceLoss(ipo, "mean", lambda beta: 1 / (4 * beta**2), "Azar et al. 2023, eq. 17"),
    "hinge": PreferenceLoss(hinge, "sum", lambda beta: 1.0, "Zhao et al. 2023; Liu et al. 2024"),
}
"""The values of ``pref_loss``: a further loss is a function and a row."""


def clipped_policy(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """PPO's clipped surrogate: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logprobs - old_logprobs).

    Schulman et al. 2017, eq. 7, with equal bounds; Yu et al. 2025 (DAPO) with clip_high > clip_low. logprobs and
    old_logprobs: (B, A) under the policy that is trained and the one that sampled. advantages: (B, A), or (B, 1) where
    a whole answer has one (GRPO). clip_low, clip_high: distances from 1, above 0. Returns (B, A); at r = 1 it is minus
    the advantage.

    >>> ratio = torch.tensor([[1.5, 1.1, 0.5]]).log()
    >>> loss = clipped_policy(ratio, torch.zeros(1, 3), torch.tensor([[2.0, 2.0, -1.0]]), 0.2, 0.2)
    >>> [round(v, 4) for v in loss[0].tolist()]
    [-2.4, -2.2, 0.8]
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clipped_value(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """PPO's value loss: 1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2).

    Schulman et al. 2016 for the idea of keeping V near V_old, this form from OpenAI's baselines (see Engstrom et al.
    2020). values, old_values, returns: (B, A). clip_range: c > 0, in units of reward. Returns (B, A).

    >>> clipped_value(torch.tensor(3.0), torch.tensor(1.0), torch.tensor(3.0), clip_range=0.5).item()
    1.125
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
