"""Group-relative policy optimisation (Shao et al. 2024) and its relatives: no critic.

A group of answers to one prompt is one tree: the prompt is sampled from, measured and trained on once for
all of them. An answer's advantage is its score against its group's. The KL from the reference, if it has a
price, is a loss of its own (k3), not a reward.

Relatives are special cases: `advantages` (grpo, dr_grpo, rloo) says what an answer is compared with, and
`loss_average` says over what the loss is averaged: all tokens of the step (DAPO, Yu et al. 2025), each
answer first (GRPO as published), or the constant max_new_tokens (Dr. GRPO, Liu et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from espalier.config.option_set import OptionSet
from espalier.config.options import Options, option
from espalier.data.steps.feed import Feed
from espalier.engine.track import Numbers
from espalier.errors import UserError
from espalier.maths.advantages import dr_grpo_advantages, group_advantages, kl_k3, rloo_advantages
from espalier.maths.losses import clipped_policy
from espalier.maths.metrics import clip_fraction
from espalier.maths.reduce import masked_sum
from espalier.models.forward import Outputs, Want
from espalier.models.reference import frozen_copy
from espalier.rollout.feed import RolloutFeed
from espalier.stages.parts import HeldOut, Live, Parts
from espalier.stages.rollouts import (
    Roller,
    RolloutOptions,
    check_apart,
    check_first_step,
    read_asks,
    reward_rule,
    rollout_plan,
)
from espalier.stages.setup import Setup
from espalier.stages.stage import Stage
from espalier.trees import Batch, Tree

ADVANTAGES = {"grpo": group_advantages, "dr_grpo": dr_grpo_advantages, "rloo": rloo_advantages}


@dataclass(frozen=True, kw_only=True)
class GRPOOptions(Options):
    """The GRPO stage."""

    advantages: Literal["grpo", "dr_grpo", "rloo"] = option(
        "grpo", "An answer's score against its group: standardised, centred, or against the others."
    )
    loss_average: Literal["token", "answer", "constant"] = option(
        "token", "Average over all tokens of the step, over each answer first, or over max_new_tokens."
    )
    clip_low: float = option(0.2, "How far the ratio of policies may fall below 1 and still pay.", above=0)
    clip_high: float = option(0.2, "How far it may rise above 1 and still pay (DAPO: 0.28).", above=0)
    grpo_epochs: int = option(1, "Passes over the answers of a rollout.", min=1)


class GroupObjective:
    """The clipped policy loss with one advantage an answer, plus kl_coef times k3.

    Extras: old_logprobs, ref_logprobs (B, A); advantages, scores (B,).
    """

    def __init__(self, options: GRPOOptions, kl_coef: float, max_new_tokens: int, temperature: float) -> None:
        self._low, self._high, self._kl_coef = options.clip_low, options.clip_high, kl_coef
        self._average, self._constant = options.loss_average, max_new_tokens
        self.want = Want(temperature=temperature)

    def count(self, batch: Batch) -> float:
        return float(batch.n_trained if self._average == "token" else batch.n_branches)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        assert outputs.logprobs is not None
        x, mask = batch.extras, batch.mask
        advantages = x["advantages"][:, None]
        each = clipped_policy(outputs.logprobs, x["old_logprobs"], advantages, self._low, self._high)
        kl = kl_k3(outputs.logprobs, x["ref_logprobs"])
        total = masked_sum((each + self._kl_coef * kl) * self._weights(mask), mask)
        ratio = (outputs.logprobs - x["old_logprobs"]).detach().exp()
        clipped = clip_fraction(
            outputs.logprobs.detach(), x["old_logprobs"], advantages, self._low, self._high
        )
        tokens, answers = mask.sum(), batch.n_branches
        groups = x["advantages"].new_zeros(batch.n_trees)
        split = groups.index_add(0, batch.tree_id, x["advantages"].abs()) > 0
        return total, {
            "loss": (total.detach(), self.count(batch)),
            "reward": (x["scores"].sum(), answers),
            "kl": (masked_sum(kl.detach(), mask), answers),
            "ratio": (masked_sum(ratio, mask), tokens),
            "clip_fraction": (masked_sum(clipped, mask), tokens),
            "answer_tokens": (tokens, answers),
            "groups_with_spread": (split.sum(), batch.n_trees),
        }

    def _weights(self, mask: Tensor) -> Tensor:
        """(B, 1) what a token of each answer weighs."""
        if self._average == "token":
            return torch.ones_like(mask[:, :1], dtype=torch.float32)
        if self._average == "constant":
            return torch.full_like(mask[:, :1], 1 / self._constant, dtype=torch.float32)
        return 1 / mask.sum(1, keepdim=True).clamp(min=1)

    def check(self, first: dict[str, float]) -> None:
        check_first_step(first)


def with_advantages(tree: Tree, compare: Callable[[Tensor, Tensor], Tensor], kl_coef: float) -> Tree:
    """A measured group with its advantages, and whether anything can be learned from it at all.

    Extras: ``signal`` (B,) is 1 where an answer is better than another, or the policy has left the reference and that
    has a price. Where all answers are equal and policy and reference say the very same, the loss has no slope but
    rounding errors.
    """
    x = tree.extras
    advantages = compare(x["scores"], torch.zeros(tree.n_branches, dtype=torch.int64))
    left = kl_coef > 0 and not torch.equal(x["old_logprobs"], x["ref_logprobs"])
    signal = torch.full((tree.n_branches,), float(left or bool((advantages != 0).any())))
    return tree.with_extras(advantages=advantages, signal=signal)


def build(setup: Setup) -> Parts:
    options, rolling = setup.option(GRPOOptions), setup.option(RolloutOptions)
    rule = reward_rule(setup)
    asks = read_asks(setup)
    policy = setup.load_policy()
    frozen = frozen_copy(policy)
    roller = Roller(setup, policy, asks, frozen, rolling.group_size or 8, rule)
    check_apart(policy=policy, reference=frozen, reward=roller.reward_model)
    compare = ADVANTAGES[options.advantages]
    plan = rollout_plan(setup, options.grpo_epochs)

    def feed(live: Live) -> Feed:
        def roll(places: list[int], number: int) -> list[Tree]:
            setup.refresh_sampler(live, policy)
            trees = roller.scored(live, roller.answered(live, places, roller.seed(number)))
            want = Want(temperature=roller.temperature)
            trees = roller.measured(live, trees, want, lambda o: {"old_logprobs": o.logprobs})  # type: ignore[dict-item]
            return [with_advantages(tree, compare, rolling.kl_coef) for tree in trees]

        return RolloutFeed(len(roller.asks), roll, setup.rows(policy), plan)

    return Parts(
        trained=policy,
        main=policy,
        objective=GroupObjective(options, rolling.kl_coef, rolling.max_new_tokens, roller.temperature),
        feed=feed,
        validate=roller.validate,
        held_out=HeldOut("reward", "higher"),
        learns=lambda batch: bool((batch.extras["signal"] > 0).any()),
        sample_prompts=setup.sample_asks(roller.held_out or roller.asks),
    )


def _check(options: OptionSet) -> None:
    if options[RolloutOptions].group_size == 1:
        raise UserError(
            "group_size: 1 in grpo: an answer is compared with the others of its group, and alone it has no "
            "advantage. Give 2 or more (null is 8), or use stage: ppo."
        )


STAGE = Stage("prompt", build, (RolloutOptions, GRPOOptions), samples=True, reference=True, check=_check)
