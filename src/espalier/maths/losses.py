"""Losses of tokens, of scores and of policies, as pure functions of tensors (those of preferences: `preferences`).

Legend: B branches, A trained tokens per branch, N trained tokens in all, P pairs.

Every loss comes back UNREDUCED, one number a token or a pair. The loop sums the real ones and divides by their
count in the whole step over all ranks, so that the loss does not depend on how a step is cut into micro-batches.
Padded cells of a (B, A) grid must be finite (the forward leaves zeros there); what they hold changes nothing
once they are masked out of the sum.

Left out: entropy bonuses and auxiliary losses of routers (the stage adds them).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from espalier.maths.reduce import masked_mean


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


def token_ratios(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Each token has its own importance weight, as in PPO and GRPO. log_ratio, mask: (B, A). Returns log_ratio.

    >>> token_ratios(torch.tensor([[0.5, 9.0]]), torch.tensor([[True, False]])).tolist()
    [[0.5, 9.0]]
    """
    return log_ratio


def sequence_ratios(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """All tokens of an answer have one importance weight, whose log is the mean of theirs.

    Zheng et al. 2025 (GSPO), eq. 7. log_ratio: (B, A), logprobs of the policy that is trained minus those of the one
    that sampled. mask: (B, A). Returns (B, A), the same in each row.

    >>> log_ratio, mask = torch.tensor([[0.5, 1.0, 9.0]]), torch.tensor([[True, True, False]])
    >>> sequence_ratios(log_ratio, mask).tolist()
    [[0.75, 0.75, 0.75]]
    """
    return masked_mean(log_ratio, mask, 1)[:, None].expand_as(log_ratio)


RATIOS = {"token": token_ratios, "sequence": sequence_ratios}
"""The values of ``importance_sampling_level``: (B, A) log-ratios and mask -> (B, A) logs of importance weights."""


def clipped_surrogate(
    logprobs: Tensor, log_weights: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """`clipped_policy` of importance weights that are made already; logprobs are not read. All (B, A).

    >>> ratio, advantages = torch.tensor([[1.5, 1.1]]), torch.tensor([[2.0, 2.0]])
    >>> [round(v, 4) for v in clipped_surrogate(ratio, ratio.log(), advantages, 0.2, 0.2)[0].tolist()]
    [-2.4, -2.2]
    """
    return clipped_policy(log_weights, torch.zeros_like(log_weights), advantages, clip_low, clip_high)


def cispo(
    logprobs: Tensor, log_weights: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """REINFORCE with importance weights that are cut and have no gradient: -sg(min(r, 1 + clip_high)) A log p.

    MiniMax 2025 (MiniMax-M1), eq. 4 and 5, without a lower bound, as there. No token loses its gradient. logprobs,
    log_weights, advantages: (B, A), or (B, 1) of advantages; clip_low is not read. Returns (B, A).

    >>> logprobs, ratio = torch.tensor([[-1.0, -1.0]]), torch.tensor([[3.0, 0.5]])
    >>> cispo(logprobs, ratio.log(), torch.tensor([[2.0]]), 0.2, 1.0).tolist()
    [[4.0, 1.0]]
    """
    return -log_weights.exp().clamp(max=1 + clip_high).detach() * advantages * logprobs


POLICIES = {"clip": clipped_surrogate, "cispo": cispo}
"""The values of ``policy_loss``: (B, A) logprobs, logs of importance weights, advantages and two bounds -> (B, A)."""


def clipped_value(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """PPO's value loss: 1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2).

    Schulman et al. 2016 for the idea of keeping V near V_old, this form from OpenAI's baselines (see Engstrom et al.
    2020). values, old_values, returns: (B, A). clip_range: c > 0, in units of reward. Returns (B, A).

    >>> clipped_value(torch.tensor(3.0), torch.tensor(1.0), torch.tensor(3.0), clip_range=0.5).item()
    1.125
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
