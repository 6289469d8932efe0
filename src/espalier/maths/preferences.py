"""Losses of preferences: pairs of answers of which one is better, and single answers that are good or bad.

Legend: P pairs, N answers. pc, pr: (P,) logprobs of the chosen and of the rejected answer under the policy that is
trained; rc, rr: the same under the reference. All are sums over the tokens of an answer, or means where the row of
`PREFERENCES` says so. Below, c = pc - rc and r = pr - rr are their log-ratios, and h = beta (c - r).

Every loss comes back unreduced, one number a pair; beta is above 0. Left out: losses that compare the pairs of a batch
with each other (AOT), which would depend on how a step is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


def dpo(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation: -(1 - e) log sigmoid(h) - e log sigmoid(-h).

    Rafailov et al. 2023, eq. 7; with label_smoothing e > 0 (the chance that a label is flipped, in [0, 0.5)) the
    conservative DPO of Mitchell 2023. Returns (P,); ln 2 where policy and reference agree. With means in place of sums
    it is the length-normalised DPO of Lambert et al. 2024 (Tulu 3).

    >>> zero = torch.tensor(0.0)
    >>> round(dpo(torch.tensor(2.0), zero, zero, zero, beta=0.5).item(), 4)
    0.3133
    """
    h = beta * _margin(pc, pr, rc, rr)
    return -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)


def robust(
    pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """DPO whose mean over flipped labels is that of clean ones: (e log sigmoid(-h) - (1 - e) log sigmoid(h)) / (1 - 2e).

    Chowdhury, Kini & Natarajan 2024 (robust DPO). label_smoothing e in [0, 0.5): the share of labels that are flipped.
    Returns (P,), which may be negative.

    >>> zero = torch.tensor(0.0)
    >>> round(robust(torch.tensor(2.0), zero, zero, zero, beta=0.5, label_smoothing=0.25).item(), 4)
    -0.1867
    """
    h = beta * _margin(pc, pr, rc, rr)
    kept, flipped = (1 - label_smoothing) * logsigmoid(h), label_smoothing * logsigmoid(-h)
    return (flipped - kept) / (1 - 2 * label_smoothing)


def exo_pair(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Exact preference optimisation of pairs: the reverse KL from (sigmoid(h), sigmoid(-h)) to (1 - e, e).

    Ji et al. 2024, eq. 16. label_smoothing e in (0, 0.5); the paper takes 0.001. Returns (P,), at least 0.

    >>> zero = torch.tensor(0.0)
    >>> round(exo_pair(torch.tensor(0.0), zero, zero, zero, beta=0.5, label_smoothing=0.25).item(), 4)
    0.1438
    """
    h = beta * _margin(pc, pr, rc, rr)
    wanted = torch.log(torch.tensor([1 - label_smoothing, label_smoothing], dtype=h.dtype, device=h.device))
    won, lost = logsigmoid(h), logsigmoid(-h)
    return won.exp() * (won - wanted[0]) + lost.exp() * (lost - wanted[1])


def ipo(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
    """Identity preference optimisation: (c - r - 1 / (2 beta))^2, of MEANS over the tokens of an answer.

    Azar et al. 2023, eq. 17 (their tau is our beta). The paper writes sequence log-probabilities; its authors confirmed
    to TRL's that the published results use the averages, without which the square grows with the length. Returns (P,).

    >>> zero = torch.tensor(0.0)
    >>> ipo(torch.tensor(2.0), zero, zero, zero, beta=0.5).item()
    1.0
    """
    return (_margin(pc, pr, rc, rr) - 1 / (2 * beta)) ** 2


def hinge(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
    """Hinge on the DPO margin: max(0, 1 - h).

    Zhao et al. 2023 (SLiC-HF), with the reference as in Liu et al. 2024 (RSO). Returns (P,); 1 where policy and
    reference agree.

    >>> zero = torch.tensor(0.0)
    >>> hinge(torch.tensor(1.5), zero, zero, zero, beta=0.5).item()
    0.25
    """
    return relu(1 - beta * _margin(pc, pr, rc, rr))


def apo_zero(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
    """Anchored preference optimisation, chosen up and rejected down: 1 - sigmoid(beta c) + sigmoid(beta r).

    D'Oosterlinck et al. 2024, eq. 7; for answers that are better than the policy's own. Returns (P,) in (0, 2).

    >>> zero = torch.tensor(0.0)
    >>> apo_zero(zero, zero, zero, zero, beta=0.5).item()
    1.0
    """
    return torch.sigmoid(-beta * (pc - rc)) + torch.sigmoid(beta * (pr - rr))


def apo_down(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
    """Anchored preference optimisation, both down, rejected further: sigmoid(beta c) + 1 - sigmoid(h).

    D'Oosterlinck et al. 2024, eq. 8; for answers that are worse than the policy's own. Returns (P,) in (0, 2).

    >>> zero = torch.tensor(0.0)
    >>> apo_down(zero, zero, zero, zero, beta=0.5).item()
    1.0
    """
    return torch.sigmoid(beta * (pc - rc)) + torch.sigmoid(-beta * _margin(pc, pr, rc, rr))


def bco_pair(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
    """A classifier of single answers, taught by pairs: -log sigmoid(beta c) - log sigmoid(-beta r).

    Jung et al. 2024 (binary classifier optimisation), without its moving shift of rewards, as in TRL. Returns
    (P,).

    >>> zero = torch.tensor(0.0)
    >>> round(bco_pair(zero, zero, zero, zero, beta=0.5).item(), 4)
    1.3863
    """
    return -logsigmoid(beta * (pc - rc)) - logsigmoid(-beta * (pr - rr))


def nca_pair(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
    """Noise contrastive alignment: -log sigmoid(beta c) - 1/2 log sigmoid(-beta c) - 1/2 log sigmoid(-beta r).

    Chen et al. 2024 (NCA), with two answers. It holds the chosen answer's likelihood up, which DPO may lower. Returns
    (P,).

    >>> zero = torch.tensor(0.0)
    >>> round(nca_pair(zero, zero, zero, zero, beta=0.5).item(), 4)
    1.3863
    """
    chosen, rejected = beta * (pc - rc), beta * (pr - rr)
    return -logsigmoid(chosen) - 0.5 * (logsigmoid(-chosen) + logsigmoid(-rejected))


def sppo_hard(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
    """Self-play preference optimisation with sure winners: (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2.

    Wu et al. 2024, eq. 4.7, with probability 1 for the chosen answer and 0 for the rejected one (their eta is
    1 / beta). Returns (P,).

    >>> zero = torch.tensor(0.0)
    >>> sppo_hard(zero, zero, zero, zero, beta=0.5).item()
    2.0
    """
    return (pc - rc - 0.5 / beta) ** 2 + (pr - rr + 0.5 / beta) ** 2


def discopop(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float, tau: float = 0.05) -> Tensor:
    """A loss that was found by a search: (1 - s) (-log sigmoid(h)) + s exp(-h), with s = sigmoid(h / tau).

    Lu et al. 2024 (DiscoPOP), eq. 5. tau > 0. Returns (P,).

    >>> zero = torch.tensor(0.0)
    >>> round(discopop(zero, zero, zero, zero, beta=0.5).item(), 4)
    0.8466
    """
    h = beta * _margin(pc, pr, rc, rr)
    share = torch.sigmoid(h / tau)
    # exp(-h) * sigmoid(h / tau), in one exponent: exp(-h) alone overflows where the sigmoid is as good as 0.
    return -logsigmoid(h) * (1 - share) + torch.exp(logsigmoid(h / tau) - h)


def simpo(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float, gamma: float = 0.5) -> Tensor:
    """SimPO: -log sigmoid(beta (pc - pr) - gamma), of MEANS over the tokens of an answer, without a reference.

    Meng, Xia & Chen 2024, eq. 6. gamma: the margin that is wanted, at least 0. rc, rr are not read. Returns (P,).

    >>> zero = torch.tensor(0.0)
    >>> round(simpo(torch.tensor(3.0), zero, zero, zero, beta=0.5, gamma=0.5).item(), 4)
    0.3133
    """
    return -logsigmoid(beta * (pc - pr) - gamma)


def orpo(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor, beta: float) -> Tensor:
    """The odds ratio's part of ORPO: -beta log sigmoid(log odds(chosen) - log odds(rejected)), odds(p) = p / (1 - p).

    Hong, Lee & Thorne 2024, eq. 7; p is exp of the MEAN logprob of an answer's tokens, beta their lambda. The other
    part of eq. 6 is the chosen answer's nll (`PreferenceLoss.nll`). rc, rr are not read. Returns (P,).

    >>> p = torch.tensor([0.5, 0.25]).log()
    >>> round(orpo(p[0], p[1], p[0], p[1], beta=1.0).item(), 4)
    0.2877
    """
    return -beta * logsigmoid(_log_odds(pc) - _log_odds(pr))


def kto(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    kl: Tensor,
    beta: float,
    weights: tuple[float, float],
) -> Tensor:
    """Kahneman-Tversky optimisation: w (1 - sigmoid(g)), g = beta (c - z) of a good answer and beta (z - c) of a bad one.

    Ethayarajh et al. 2024, eq. 7, with c = policy - reference. policy, reference: (N,) logprobs of whole answers, sums
    over their tokens. desirable: (N,), above 0 where somebody called the answer good. kl: z, in nats, at least 0 and
    without a gradient, () or (N,): the KL of the policy from the reference, estimated on answers to other prompts.
    weights: w of good answers and of bad ones. Returns (N,).

    >>> log_ratio, good = torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.0])
    >>> loss = kto(log_ratio, torch.zeros(2), good, torch.tensor(1.0), beta=0.5, weights=(1.0, 2.0))
    >>> [round(v, 4) for v in loss.tolist()]
    [0.3775, 1.2449]
    """
    gain = beta * (policy - reference - kl)
    return torch.where(desirable > 0, weights[0] * torch.sigmoid(-gain), weights[1] * torch.sigmoid(gain))


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logprob); at p = 1 that of the largest p below 1, so that it stays finite."""
    below = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    return below - torch.log(-torch.expm1(below))


def _margin(pc: Tensor, pr: Tensor, rc: Tensor, rr: Tensor) -> Tensor:
    return (pc - rc) - (pr - rr)


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss of pairs, and what a stage must know to train with it.

    Attributes:
        function: (P,) logprobs under the policy of chosen and rejected, the same under the reference, and ``beta`` > 0
            -> (P,); and by name what it `takes`.
        reduction: whether an answer's logprob is the sum over its tokens or their mean.
        source: where the formula stands.
        takes: which of ``label_smoothing``, ``gamma`` and ``tau`` it takes.
        reference: whether it compares with a reference; one that does not is given zeros in its place.
        nll: how much of the chosen answer's nll (a mean over its tokens) belongs to it.
    """

    function: Callable[..., Tensor]
    reduction: Literal["sum", "mean"]
    source: str
    takes: tuple[str, ...] = ()
    reference: bool = True
    nll: float = 0.0

    def at_start(self, **settings: float) -> float | None:
        """The loss where policy and reference agree, without its nll; None where any value is possible."""
        nothing = torch.zeros(())
        return float(self.function(*[nothing] * 4, **settings)) if self.reference else None


_SMOOTHS = ("label_smoothing",)

PREFERENCES: dict[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(dpo, "sum", "Rafailov et al. 2023, eq. 7; Mitchell 2023", _SMOOTHS),
    "ipo": PreferenceLoss(ipo, "mean", "Azar et al. 2023, eq. 17"),
    "hinge": PreferenceLoss(hinge, "sum", "Zhao et al. 2023; Liu et al. 2024"),
    "robust": PreferenceLoss(robust, "sum", "Chowdhury et al. 2024", _SMOOTHS),
    "exo_pair": PreferenceLoss(exo_pair, "sum", "Ji et al. 2024, eq. 16", _SMOOTHS),
    "apo_zero": PreferenceLoss(apo_zero, "sum", "D'Oosterlinck et al. 2024, eq. 7"),
    "apo_down": PreferenceLoss(apo_down, "sum", "D'Oosterlinck et al. 2024, eq. 8"),
    "sigmoid_norm": PreferenceLoss(dpo, "mean", "Lambert et al. 2024 (Tulu 3)", _SMOOTHS),
    "bco_pair": PreferenceLoss(bco_pair, "sum", "Jung et al. 2024"),
    "nca_pair": PreferenceLoss(nca_pair, "sum", "Chen et al. 2024 (NCA)"),
    "sppo_hard": PreferenceLoss(sppo_hard, "sum", "Wu et al. 2024, eq. 4.7"),
    "discopop": PreferenceLoss(discopop, "sum", "Lu et al. 2024, eq. 5", ("tau",)),
    "orpo": PreferenceLoss(orpo, "mean", "Hong et al. 2024, eq. 6", reference=False, nll=1.0),
    "simpo": PreferenceLoss(simpo, "mean", "Meng et al. 2024, eq. 6", ("gamma",), reference=False),
    "cpo": PreferenceLoss(dpo, "sum", "Xu et al. 2024 (CPO)", _SMOOTHS, reference=False, nll=1.0),
}
"""The values of ``pref_loss``: a further loss is a function and a row."""
