"""From the scores of a rollout to PPO's advantages: scores are normalised, KL is paid, rewards become advantages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from espalier.config.options import Options, option
from espalier.errors import UserError
from espalier.maths.advantages import adaptive_kl, gae, kl_k1, token_rewards
from espalier.rollout.experience import trained_mask, whitened
from espalier.stages.policy import PolicyTerms
from espalier.trees import Tree


@dataclass(frozen=True, kw_only=True)
class ShapingOptions(Options):
    """From scores to advantages in PPO."""

    gamma: float = option(1.0, "Discount of later rewards.", min=0, max=1)
    lam: float = option(0.95, "GAE's trade of bias for variance.", min=0, max=1)
    score_normalization: Literal["auto", "none", "scale", "standardise", "reference", "saved"] = option(
        "auto",
        "Divide scores by their standard deviation so far (scale), after taking away their mean so far (standardise); both "
        "of the reference answers to the prompts (reference), or of held-out answers as saved with the one reward model "
        "(saved); auto: saved, where it has them, else none.",
    )
    reward_clip: float | None = option(
        5.0, "Scores, once normalised, are cut to this distance from 0; null: never.", above=0
    )
    whiten_rewards: bool = option(
        False, "Divide the rewards of all tokens of a rollout by their standard deviation."
    )
    whiten_advantages: Literal["full", "scale", "none"] = option(
        "full", "The advantages of a rollout get mean 0 and variance 1 (full), variance 1 (scale), or stay."
    )
    kl_target: float | None = option(
        None, "Move kl_coef so that an answer's KL comes to this; null: fixed.", above=0
    )
    kl_horizon: int = option(10000, "Answers over which kl_coef moves.", min=1)


class KLController:
    """The price of KL: fixed, or moved towards a target (Ziegler et al. 2019)."""

    def __init__(self, coefficient: float, target: float | None, horizon: int) -> None:
        self.coefficient, self._target, self._horizon = coefficient, target, horizon

    def update(self, kl: float, answers: int) -> None:
        if self._target is not None:
            self.coefficient = adaptive_kl(self.coefficient, kl, self._target, answers, self._horizon)

    def state(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def restore(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]


class ScoreNormalizer:
    """Scores by the mean and the standard deviation of all scores so far, those of this rollout included.

    The moments are those of Chan et al. 1979, as in the PPO of TRL 0.11 and of LLaMA-Factory (`ppo_score_norm`). With
    ``reference`` they are those of the data's own answers, once and for all, so that these have mean 0 and standard
    deviation 1 (Ouyang et al. 2022, appendix C.2, who shift a reward model so), and with ``saved`` those that a reward
    model was saved with.

    Args:
        kind: none, scale, standardise, reference or saved.
        moments: mean and standard deviation, of ``saved``.
    """

    def __init__(self, kind: str, moments: tuple[float, float] = (0.0, 1.0)) -> None:
        self._kind = kind
        self._count, self._mean, self._squares = 0.0, 0.0, 0.0
        if kind == "saved":  # as if two scores had come
            self._count, self._mean, self._squares = 2.0, moments[0], moments[1] ** 2

    def __call__(self, scores: Tensor) -> Tensor:
        """(N,) of a rollout, the same on every rank -> (N,)."""
        if self._kind in ("scale", "standardise") and len(scores):
            self.take(scores)
        return self.present(scores)

    @property
    def wants_references(self) -> bool:
        """Whether it is still to be shown the scores of the reference answers."""
        return self._kind == "reference" and not self._count

    def take(self, scores: Tensor) -> None:
        """Let scores (N,) join those that came so far."""
        n, mean = len(scores), float(scores.double().mean())
        total, step = self._count + n, mean - self._mean
        self._squares += float(((scores.double() - mean) ** 2).sum()) + step**2 * self._count * n / total
        self._mean += step * n / total
        self._count = total

    def present(self, scores: Tensor) -> Tensor:
        """The same by the scores that came before, which these do not join."""
        if self._kind == "none" or not self._count:
            return scores
        deviation = math.sqrt(self._squares / max(self._count - 1, 1))
        centre = 0.0 if self._kind == "scale" else self._mean
        return (scores - centre) / (deviation + 1e-8) if deviation else scores - centre

    @property
    def shift(self) -> tuple[float, float] | None:
        """What is taken away from scores, and what the rest is divided by, where both stay as they are."""
        if self._kind != "saved":
            return None
        return self._mean, math.sqrt(self._squares) + 1e-8

    def state(self) -> dict[str, Any]:
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def restore(self, state: dict[str, Any]) -> None:
        self._count, self._mean, self._squares = state["count"], state["mean"], state["squares"]


class ClipWarning:
    """Says once that `reward_clip` makes answers equal that the reward tells apart."""

    def __init__(self, limit: float | None, say: Callable[[str], None]) -> None:
        self._limit, self._say = limit, say

    def __call__(self, scores: Tensor) -> None:
        """Look at the scores (N,) of a rollout."""
        if self._limit is None or len(scores) < 2:
            return
        cut = scores.clamp(-self._limit, self._limit)
        many = int((scores.abs() > self._limit).sum())
        if 2 * many > len(scores) or (_all_equal(cut) and not _all_equal(scores)):
            self._say(
                f"{many} of {len(scores)} scores ({float(scores.min()):g} to {float(scores.max()):g}) were cut to "
                f"reward_clip {self._limit:g}, so that they don't differ any more; raise it, scale the reward, or set "
                "reward_clip: null (`score_clipped` counts them)"
            )
            self._limit = None


def find_normalizer(kind: str, models: Mapping[str, tuple[float, Any]], *, relative: bool) -> ScoreNormalizer:
    """The normaliser that `score_normalization` means.

    Args:
        kind: the option's value.
        models: of all rewards, the weight of each and the model with its ``score_moments``, which may be None, or None for
            what is no model.
        relative: whether rewards are counted from a reference answer's, so that no mean is theirs.

    Raises:
        UserError: saved moments are asked for, and there are none or several rewards.
    """
    if kind not in ("auto", "saved"):
        return ScoreNormalizer(kind)
    reason = ""
    if len(models) != 1 or relative:
        reason = "rewards are several, or counted from the reference answer's"
    else:
        ((name, (weight, model)),) = models.items()
        found = getattr(model, "score_moments", None)
        if found is not None and weight:
            mean, deviation = found
            return ScoreNormalizer("saved", (weight * mean, abs(weight) * deviation))
        reason = f"{name} has none: a reward model gets them from held-out answers when it is trained"
    if kind == "auto":
        return ScoreNormalizer("none")
    raise UserError(
        f"score_normalization: saved wants the mean and the standard deviation of one reward model's scores; {reason}. "
        "Use reference, standardise or none."
    )


def _all_equal(x: Tensor) -> bool:
    return bool((x == x[0]).all())


def with_shaped(trees: Sequence[Tree], normalise: Callable[[Tensor], Tensor]) -> list[Tree]:
    """The scored trees of a rollout with ``extras["shaped"]`` (B,), the scores that are paid."""
    sizes = [tree.n_branches for tree in trees]
    shaped = normalise(torch.cat([tree.extras["scores"] for tree in trees]))
    parts = torch.split(shaped, sizes)  # type: ignore[no-untyped-call]
    return [tree.with_extras(shaped=part) for tree, part in zip(trees, parts, strict=True)]


def experience(trees: Sequence[Tree], options: ShapingOptions, terms: PolicyTerms) -> list[Tree]:
    """What PPO makes of measured trees: KL-shaped rewards, GAE, advantages whitened over all of them.

    Args:
        trees: with the extras old_logprobs, ref_logprobs, old_values (B, A) and shaped (B,).

    Returns:
        The trees with kl (k1), advantages and returns, (B, A).
    """
    rewarded = []
    for tree in trees:
        x, mask = tree.extras, trained_mask(tree)
        kl = terms.kl(x["old_logprobs"], x["ref_logprobs"]) * mask
        rewards = token_rewards(kl, x["shaped"], mask, terms.reward_price(), options.reward_clip)
        logged = kl_k1(x["old_logprobs"], x["ref_logprobs"]) * mask
        rewarded.append(tree.with_extras(kl=logged, rewards=rewards))
    if options.whiten_rewards:
        rewarded = whitened(rewarded, "rewards", shift_mean=False)
    finished = []
    for tree in rewarded:
        x, mask = tree.extras, trained_mask(tree)
        advantages, returns = gae(x["rewards"], x["old_values"], mask, options.gamma, options.lam)
        price = torch.full((len(mask),), terms.price())
        ptx = torch.zeros(len(mask))
        finished.append(tree.with_extras(advantages=advantages, returns=returns, ptx=ptx, price=price))
    if options.whiten_advantages == "none":
        return finished
    return whitened(finished, "advantages", shift_mean=options.whiten_advantages == "full")
