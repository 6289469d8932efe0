"""From scores to advantages: KL estimates, per-token rewards, GAE, and the group baselines.

Legend: B branches, A trained tokens per branch, N trained tokens in all.

Nothing here has a gradient that anyone needs: the feed calls these functions without one and lets the results ride
in the Batch. Left out: whitening (`reduce.whiten`), and everything that asks where the scores come from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from espalier.maths.reduce import segment_mean, segment_sum


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k1 = log p - log q, an estimate of KL(p || q) from tokens that p sampled: unbiased, may be negative.

    Schulman 2020, "Approximating KL divergence". p is the policy (`logprobs`), q the reference (`ref_logprobs`); any
    equal shapes, mostly (B, A). Returns the same shape.

    >>> round(kl_k1(torch.tensor(0.5).log(), torch.tensor(0.25).log()).item(), 4)
    0.6931
    """
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k3 = q/p - 1 - log(q/p): unbiased and never negative (Schulman 2020; the KL of GRPO, Shao et al. 2024, eq. 4).

    As `kl_k1`. `expm1` keeps the digits where p and q are close, which is nearly everywhere.

    >>> round(kl_k3(torch.tensor(0.5).log(), torch.tensor(0.25).log()).item(), 4)
    0.1931
    """
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k2 = (log p - log q)^2 / 2: biased, of low variance, and as a loss with the gradient of KL(p || q).

    Schulman 2020. As `kl_k1`. Its gradient on tokens that p sampled is (log p - log q) * grad log p, whose mean is that
    of the reverse KL; k1's own gradient has the mean 0.

    >>> round(kl_k2(torch.tensor(0.5).log(), torch.tensor(0.25).log()).item(), 4)
    0.2402
    """
    return (logprobs - ref_logprobs) ** 2 / 2


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
"""The values of ``kl_estimator``: (B, A) logprobs of policy and reference -> (B, A)."""


def token_rewards(
    kl: Tensor, scores: Tensor, mask: Tensor, kl_coef: float, score_clip: float | None
) -> Tensor:
    """The reward of each token: -kl_coef * kl on every one, plus the clipped score on the last real one.

    Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, eq. 2. kl: (B, A) estimates, mostly `kl_k1`. scores: (B,) of whole
    answers. mask: (B, A), True on real tokens. score_clip: scores are cut to [-score_clip, score_clip]; None leaves them.
    Returns (B, A), 0 in masked cells. A branch without a real token has nowhere to put its score: all zeros.

    >>> kl, mask = torch.tensor([[0.5, 1.0, 7.0]]), torch.tensor([[True, True, False]])
    >>> [
    ...     round(v, 4)
    ...     for v in token_rewards(kl, torch.tensor([9.0]), mask, kl_coef=0.1, score_clip=5.0)[0].tolist()
    ... ]
    [-0.05, 4.9, 0.0]
    """
    if score_clip is not None:
        scores = scores.clamp(-score_clip, score_clip)
    real_from_here = mask.flip(1).cumsum(1).flip(1)
    is_last = mask & (real_from_here == 1)
    return (-kl_coef * kl).masked_fill(~mask, 0) + is_last * scores[:, None]


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t.

    Schulman et al. 2016, eq. 16. rewards: (B, A). values: (B, A), V_t of the state BEFORE token t (read at its parent).
    mask: (B, A). gamma, lam: in [0, 1]. The answer's end is the end of the episode: after the last real token V and A
    are 0, whatever the cells hold; a masked cell in the middle is stepped over. Returns (advantages, returns), both
    (B, A) and 0 in masked cells; returns = advantages + values.

    >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]])
    >>> advantages, returns = gae(rewards, values, torch.tensor([[True, True]]), gamma=1.0, lam=0.5)
    >>> advantages.tolist(), returns.tolist()
    ([[0.125, 0.75]], [[0.625, 1.0]])
    """
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0])
    running = torch.zeros_like(next_value)
    for t in reversed(range(rewards.shape[1])):
        real = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(real, delta + gamma * lam * running, running)
        next_value = torch.where(real, values[:, t], next_value)
        advantages[:, t] = torch.where(real, running, 0)
    return advantages, (advantages + values).masked_fill(~mask, 0)


def group_advantages(scores: Tensor, tree_id: Tensor, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """GRPO: (score - mean of its group) / (standard deviation of its group + eps); a group is a tree.

    Shao et al. 2024 (DeepSeekMath), section 4.1.2. scores, tree_id: (B,). The deviation is the unbiased one (N - 1), as
    in TRL. A group of one, or of equal scores, has advantage 0. Returns (B,).

    >>> advantages = group_advantages(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1]))
    >>> [round(v, 4) for v in advantages.tolist()]
    [0.707, -0.707, 0.0]
    """
    index, size = _groups(scores, tree_id)
    centred = _centred(scores, index, size)
    if not scale:
        return centred
    variance = segment_sum(centred**2, index, len(size)) / (size - 1).clamp(min=1)
    return centred / (variance.sqrt()[index] + eps)


def dr_grpo_advantages(scores: Tensor, tree_id: Tensor) -> Tensor:
    """Dr. GRPO: score - mean of its group, without the division that favours questions with little spread.

    Liu et al. 2025, "Understanding R1-Zero-Like Training", section 3.2. scores, tree_id: (B,). Returns (B,).

    >>> dr_grpo_advantages(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1])).tolist()
    [0.5, -0.5, 0.0]
    """
    return group_advantages(scores, tree_id, scale=False)


def rloo_advantages(scores: Tensor, tree_id: Tensor) -> Tensor:
    """RLOO: score - mean of the OTHERS of its group = G / (G - 1) * (score - mean of the group).

    Kool et al. 2019; Ahmadian et al. 2024, section 3.3. scores, tree_id: (B,). A group of one has no others: 0. Returns
    (B,).

    >>> rloo_advantages(torch.tensor([4.0, 1.0, 1.0]), torch.tensor([0, 0, 0])).tolist()
    [3.0, -1.5, -1.5]
    """
    index, size = _groups(scores, tree_id)
    return _centred(scores, index, size) * (size / (size - 1).clamp(min=1))[index]


def batch_advantages(scores: Tensor, tree_id: Tensor, eps: float = 1e-4) -> Tensor:
    """(score - mean of its group) / (standard deviation of all scores of the rollout + eps).

    Liu et al. 2025 ("Tricks or Traps", Lite PPO), section 4; TRL's scale_rewards: batch. scores, tree_id: (B,) of the
    whole rollout. Returns (B,).

    >>> found = batch_advantages(torch.tensor([1.0, 0.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1]))
    >>> [round(v, 3) for v in found.tolist()]
    [0.522, -0.522, 0.0, 0.0]
    """
    return dr_grpo_advantages(scores, tree_id) / (_deviation(scores) + eps)


def reinforce_pp_advantages(scores: Tensor, tree_id: Tensor, eps: float = 1e-4) -> Tensor:
    """REINFORCE++: (score - mean of all) / (standard deviation of all + eps), whatever the prompt.

    Hu et al. 2025, with the KL as a loss of its own in place of a reward. scores: (B,) of the whole rollout; tree_id is
    not read. Returns (B,).

    >>> found = reinforce_pp_advantages(torch.tensor([1.0, 3.0]), torch.tensor([0, 1]))
    >>> [round(v, 3) for v in found.tolist()]
    [-0.707, 0.707]
    """
    everyone = torch.zeros_like(tree_id)
    return group_advantages(scores, everyone, eps=eps)


def reinforce_pp_baseline_advantages(scores: Tensor, tree_id: Tensor) -> Tensor:
    """REINFORCE++-baseline: score - mean of its group, then standardised over the rollout (Hu et al. 2025).

    As `reinforce_pp_advantages`. Groups of equal scores get 0 and make the others' deviation smaller.

    >>> scores, tree_id = torch.tensor([1.0, 3.0, 7.0, 7.0]), torch.tensor([0, 0, 1, 1])
    >>> [round(v, 3) for v in reinforce_pp_baseline_advantages(scores, tree_id).tolist()]
    [-1.225, 1.225, 0.0, 0.0]
    """
    return reinforce_pp_advantages(dr_grpo_advantages(scores, tree_id), tree_id)


ADVANTAGES = {
    "grpo": group_advantages,
    "dr_grpo": dr_grpo_advantages,
    "rloo": rloo_advantages,
    "batch": batch_advantages,
    "reinforce_pp": reinforce_pp_advantages,
    "reinforce_pp_baseline": reinforce_pp_baseline_advantages,
}
"""The values of ``advantages``: (B,) scores and tree_id of a rollout -> (B,)."""


def overlong_penalty(lengths: Tensor, longest: int, buffer: int) -> Tensor:
    """What a long answer loses, from 0 up to 1 over the last `buffer` tokens: clip((length - (longest - buffer)) / buffer).

    Yu et al. 2025 (DAPO), eq. 13, with the sign turned. lengths: (B,) tokens. 0 < buffer <= longest. Returns (B,).

    >>> overlong_penalty(torch.tensor([5.0, 8.0, 9.0, 10.0]), longest=10, buffer=4).tolist()
    [0.0, 0.5, 0.75, 1.0]
    """
    return ((lengths - (longest - buffer)) / buffer).clamp(0, 1)


def adaptive_kl(kl_coef: float, kl: float, target: float, batch: int, horizon: int) -> float:
    """The next KL coefficient of a log-space proportional controller: kl_coef * (1 + e * batch / horizon).

    Ziegler et al. 2019, section 2.2 (and its code, which scales by the batch): e = clip(kl / target - 1, -0.2, 0.2).
    kl: mean KL of an answer in this step, in nats, and `target` the one wanted (> 0). batch: answers in this step.
    horizon: answers after which a full error has had its full effect; a step of more answers has it once, or the
    coefficient could turn negative and pay for KL.

    >>> round(adaptive_kl(0.1, kl=12.0, target=6.0, batch=100, horizon=1000), 4)
    0.102
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * min(1.0, batch / horizon))


def _centred(scores: Tensor, index: Tensor, size: Tensor) -> Tensor:
    """(B,) scores minus the mean of their group; exactly 0 in a group of equal scores, whose mean may round to another."""
    high, low = (
        torch.zeros_like(size).scatter_reduce(0, index, scores, kind, include_self=False)
        for kind in ("amax", "amin")
    )
    centred = scores - segment_mean(scores, index, len(size))[index]
    return torch.where((high > low)[index], centred, 0.0)


def _deviation(x: Tensor) -> Tensor:
    """The unbiased standard deviation of (B,) numbers; 0 of a single one."""
    return x.std() if len(x) > 1 else x.new_zeros(())


def _groups(scores: Tensor, tree_id: Tensor) -> tuple[Tensor, Tensor]:
    """(index, size): which group each branch is in, numbered without holes, and how many branches a group has."""
    _, index, size = tree_id.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    return index, size.to(scores.dtype)
