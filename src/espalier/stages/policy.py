"""What PPO and GRPO have in common beside the sampling: the price of KL, and terms that may be added to their losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from espalier.config.options import Options, option
from espalier.config.stage_defaults import KL_ESTIMATOR, KL_IN
from espalier.engine.group import over_ranks
from espalier.maths.advantages import KL_ESTIMATORS, kl_k3
from espalier.maths.reduce import masked_sum
from espalier.models.forward import Outputs, Want
from espalier.stages.guards import check_first_step
from espalier.stages.parts import Live
from espalier.trees import Batch

if TYPE_CHECKING:
    EstimatorName = str
else:  # what help, documents and the check of a file show are the rows of the table
    EstimatorName = Literal[tuple(KL_ESTIMATORS)]


IMPORTANCE = "importance"
"""The extra (B, A) with what a token's loss is multiplied with, where something else than the policy has sampled it."""


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(Options):
    """KL, entropy, and how far a policy may go."""

    kl_in: Literal["reward", "loss"] = option(
        KL_IN, "Where the KL from the reference is paid: taken from the reward, or added to the loss."
    )
    kl_estimator: EstimatorName = option(
        KL_ESTIMATOR,
        "How the KL of a token is estimated: k1 (log-ratio), k2 (half its square) or k3 (never negative).",
    )
    entropy_coef: float = option(0.0, "Weight of an entropy bonus, a nat a token.", min=0)
    dual_clip: float | None = option(
        None,
        "The most that a likelier token with a negative advantage may weigh, such as 3 (Ye et al. 2020); null: no limit.",
        above=1,
    )
    stop_kl: float | None = option(
        None,
        "Leave out the rest of a rollout's passes once a token has moved by so many nats from the policy that sampled.",
        above=0,
    )

    def problems(self) -> list[str]:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            return [
                "`kl_estimator: k1` with `kl_in: loss` has no effect: the mean of its gradient is 0. Use k2 or k3, or "
                "kl_in: reward."
            ]
        return []


@dataclass
class PassGuard:
    """Ends the passes over a rollout where the policy has gone too far from the one that sampled.

    Early stopping as in OpenAI's Spinning Up: of the mean of k3 over the trained tokens of a step.

    Attributes:
        limit: in nats a token; None: never.
        shut: whether the rest of this rollout's steps is left out.
    """

    limit: float | None
    shut: bool = False
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def begin(self) -> None:
        """A new rollout."""
        self.shut, self._sums = False, [0.0, 0.0]

    def look(self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> None:
        """One micro-batch of a step: (B, A) of the policy now and of the one that sampled; no gradient is kept."""
        if self.limit is not None:
            moved = kl_k3(old_logprobs, logprobs.detach())
            self._sums[0] += float(masked_sum(moved, mask))
            self._sums[1] += float(mask.sum())

    def after_step(self, live: Live) -> None:
        """Decide, alike on every rank, from what all of them have looked at in the step."""
        if self.limit is None:
            return
        moved, tokens = over_ranks(live.accelerator, self._sums)
        self.shut = self.shut or moved > self.limit * max(tokens, 1.0)
        self._sums = [0.0, 0.0]


def learned(batch: Batch) -> Tensor:
    """(B, A) the trained tokens of the answers that are learned from (``extras["learned"]`` (B,) is 0 for others)."""
    chosen = batch.extras.get("learned")
    return batch.mask if chosen is None else batch.mask & (chosen > 0)[:, None]


def dual_clipped(loss: Tensor, advantages: Tensor, limit: float | None) -> Tensor:
    """The clipped surrogate with an upper bound where the advantage is negative: min(loss, limit * |A|) for A < 0.

    Ye et al. 2020, eq. 5: a token that has become very likely and is bad weighs at most `limit` times its advantage.
    loss: (B, A), unreduced. advantages: (B, A) or (B, 1). limit: above 1; None changes nothing.

    >>> dual_clipped(torch.tensor([[9.0, 9.0]]), torch.tensor([[-1.0, 1.0]]), 3.0).tolist()
    [[3.0, 9.0]]
    """
    if limit is None:
        return loss
    bound = torch.where(advantages < 0, -limit * advantages, math.inf)
    return torch.minimum(loss, bound)


class PolicyTerms:
    """What is common to the losses of PPO and GRPO: what they want of the forward, what is added for each token, and
    what must hold at the first step.

    Args:
        options: of the run.
        kl_coef: the present price of a nat of KL from the reference.
        temperature: of sampling, and of the logprobs that are trained.
        precision: fp32, bf16 or fp16; of the products.
        exact_reference: whether the reference is the policy's start to the last bit, and not stored in few.
    """

    def __init__(
        self,
        options: PolicyOptions,
        kl_coef: Callable[[], float],
        temperature: float = 1.0,
        precision: str = "fp32",
        *,
        exact_reference: bool = True,
    ) -> None:
        self.guard = PassGuard(options.stop_kl)
        self._options, self._kl_coef, self._precision = options, kl_coef, precision
        self._exact_reference = exact_reference
        self._kl = KL_ESTIMATORS[options.kl_estimator]
        self.want = Want(entropy=options.entropy_coef > 0, temperature=temperature)

    def price(self) -> float:
        """What a nat of KL costs at present, wherever it is paid."""
        return self._kl_coef()

    def reward_price(self) -> float:
        """What a nat of KL costs in the reward; 0 where it is paid in the loss."""
        return self._kl_coef() if self._options.kl_in == "reward" else 0.0

    def loss_price(self) -> float:
        """What a nat of KL costs in the loss; 0 where it is paid in the reward."""
        return self._kl_coef() if self._options.kl_in == "loss" else 0.0

    def kl(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """(B, A) the run's estimate of each token's KL from the reference."""
        return self._kl(logprobs, ref_logprobs)

    def clipped(self, loss: Tensor, advantages: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """`dual_clipped` as the options say, each token by the weight that it was given (``extras["importance"]``)."""
        loss = dual_clipped(loss, advantages, self._options.dual_clip)
        return loss * extras[IMPORTANCE] if IMPORTANCE in extras else loss

    def added(self, outputs: Outputs, ref_logprobs: Tensor) -> Tensor:
        """(B, A) what the loss of each token grows by: the price of its KL, minus the entropy bonus."""
        assert outputs.logprobs is not None
        added = torch.zeros_like(outputs.logprobs)
        if self.loss_price():
            added = added + self.loss_price() * self._kl(outputs.logprobs, ref_logprobs)
        if outputs.entropy is not None:
            added = added - self._options.entropy_coef * outputs.entropy
        return added

    def numbers(
        self, outputs: Outputs, extras: Mapping[str, Tensor], mask: Tensor
    ) -> dict[str, tuple[Tensor | float, Tensor | float]]:
        """How far the policy is from the one that sampled, and its entropy where it is asked for: sums over tokens."""
        assert outputs.logprobs is not None
        old_logprobs = extras["old_logprobs"]
        self.guard.look(outputs.logprobs, old_logprobs, mask)
        shift, tokens = (outputs.logprobs - old_logprobs).detach(), mask.sum()
        numbers: dict[str, tuple[Tensor | float, Tensor | float]] = {
            "ratio": (masked_sum(shift.exp(), mask), tokens),
            "logprob_shift": (masked_sum(shift.abs(), mask), tokens),
        }
        if IMPORTANCE in extras:
            numbers[IMPORTANCE] = (masked_sum(extras[IMPORTANCE], mask), tokens)
        if outputs.entropy is not None:
            numbers["entropy"] = (masked_sum(outputs.entropy.detach(), mask), tokens)
        return numbers

    def check(self, first: dict[str, float]) -> None:
        """See `check_first_step`."""
        check_first_step(first if self._exact_reference else {**first, "kl": 0.0}, self._precision)
