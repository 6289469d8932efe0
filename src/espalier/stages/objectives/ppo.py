"""Proximal policy optimisation from human feedback (Ouyang et al. 2022), whole and on one machine.

A policy, a critic that starts from the reward model, a frozen reference, and a reward model or a rule. The
experience of a rollout is made in its feed: sampled trees, old and reference logprobs, values, per-token
rewards (the KL from the reference on every token, the clipped score on the last), GAE, whitened advantages.
The loss is the clipped policy loss plus the clipped value loss, plus on request the likelihood of a data set
of its own (PPO-ptx).

Not here: an entropy bonus, and a value head on the policy's own body.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.config.options import Options, option
from espalier.data.steps.feed import Feed
from espalier.engine.track import Numbers
from espalier.maths.advantages import adaptive_kl, gae, kl_k1, token_rewards
from espalier.maths.losses import clipped_policy, clipped_value, nll
from espalier.maths.metrics import clip_fraction
from espalier.maths.reduce import masked_sum
from espalier.models.forward import Outputs, TreeModel, Want
from espalier.models.reference import frozen_copy
from espalier.rollout.experience import trained_mask, whitened
from espalier.rollout.feed import RolloutFeed
from espalier.rollout.scored import component_sums
from espalier.stages.parts import HeldOut, Live, Parts
from espalier.stages.rollouts import (
    Roller,
    RolloutOptions,
    check_apart,
    check_first_step,
    read_asks,
    rewards_of,
    rollout_plan,
)
from espalier.stages.setup import Setup
from espalier.stages.stage import Stage
from espalier.trees import Batch, Tree


@dataclass(frozen=True, kw_only=True)
class PPOOptions(Options):
    """The PPO stage."""

    clip_range: float = option(0.2, "How far the ratio of policies may go from 1 and still pay.", above=0)
    clip_range_value: float = option(0.2, "How far a value may go from the old one and still pay.", above=0)
    vf_coef: float = option(0.1, "Weight of the value loss.", min=0)
    gamma: float = option(1.0, "Discount of later rewards.", min=0, max=1)
    lam: float = option(0.95, "GAE's trade of bias for variance.", min=0, max=1)
    ppo_epochs: int = option(1, "Passes over the answers of a rollout.", min=1)
    reward_clip: float | None = option(5.0, "Scores are cut to this distance from 0; null: never.", above=0)
    kl_target: float | None = option(
        None, "Move kl_coef so that an answer's KL comes to this; null: fixed.", above=0
    )
    kl_horizon: int = option(10000, "Answers over which kl_coef moves.", min=1)
    ptx_coef: float = option(0.0, "Weight of the likelihood of ptx_dataset's text.", min=0)
    ptx_dataset: str | list[str | dict[str, Any]] | None = option(
        None, "Chats or text for the ptx loss.", names="data"
    )
    ema_decay: float | None = option(
        None, "Keep a moving average of the policy, such as 0.992.", above=0, below=1
    )

    def problems(self) -> list[str]:
        if bool(self.ptx_coef) != (self.ptx_dataset is not None):
            return ["`ptx_coef` and `ptx_dataset` need each other: give both or none."]
        return []


class PolicyAndCritic(nn.Module):
    """Two models behind one forward, so that one wrapper, one optimiser and one backward serve both."""

    def __init__(self, policy: TreeModel, critic: TreeModel) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(self, batch: Batch, want: Want) -> Outputs:
        wanted = Want(want.logprobs, want.entropy, temperature=want.temperature)
        outputs = self.policy(self.policy.fitting(batch), wanted)
        if not want.values:
            return Outputs(outputs.logprobs, outputs.entropy)
        values = self.critic(self.critic.fitting(batch), Want(logprobs=False, values=True)).values
        return Outputs(outputs.logprobs, outputs.entropy, values)


class ClippedObjective:
    """PPO's loss over the extras that the feed has put on the trees.

    Extras: old_logprobs, old_values, advantages, returns (B, A); kl (B, A) and scores (B,) to be logged;
    ptx (B,), 0 for answers and for documents the weight of a token's nll against an answer's token.
    """

    def __init__(self, options: PPOOptions, temperature: float) -> None:
        self._clip, self._clip_value, self._vf = options.clip_range, options.clip_range_value, options.vf_coef
        self._cut = math.inf if options.reward_clip is None else options.reward_clip
        self.want = Want(values=True, temperature=temperature)

    def count(self, batch: Batch) -> float:
        return float(self._answers(batch).sum())

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        assert outputs.logprobs is not None and outputs.values is not None
        x, mask = batch.extras, self._answers(batch)
        policy = clipped_policy(outputs.logprobs, x["old_logprobs"], x["advantages"], self._clip, self._clip)
        value = clipped_value(outputs.values, x["old_values"], x["returns"], self._clip_value)
        policy_sum, value_sum = masked_sum(policy, mask), masked_sum(value, mask)
        documents = batch.mask & (x["ptx"] > 0)[:, None]
        likelihood = nll(outputs.logprobs) * x["ptx"][:, None]
        ptx_sum = masked_sum(likelihood, documents)
        total = policy_sum + self._vf * value_sum + ptx_sum
        tokens, answers = mask.sum(), (x["ptx"] == 0).sum()
        ratio = (outputs.logprobs - x["old_logprobs"]).detach().exp()
        clipped = clip_fraction(
            outputs.logprobs.detach(), x["old_logprobs"], x["advantages"], self._clip, self._clip
        )
        numbers: dict[str, tuple[Tensor | float, Tensor | float]] = {
            "loss": (total.detach(), tokens),
            "policy_loss": (policy_sum.detach(), tokens),
            "value_loss": (value_sum.detach(), tokens),
            "ratio": (masked_sum(ratio, mask), tokens),
            "clip_fraction": (masked_sum(clipped, mask), tokens),
            "kl": (masked_sum(x["kl"], mask), answers),
            "reward": ((x["scores"] * (x["ptx"] == 0)).sum(), answers),
            "score_clipped": (((x["scores"].abs() > self._cut) & (x["ptx"] == 0)).sum(), answers),
            "answer_tokens": (tokens, answers),
        }
        if bool(documents.any()):
            numbers["ptx_loss"] = (masked_sum(nll(outputs.logprobs).detach(), documents), documents.sum())
        else:
            numbers["ptx_loss"] = (0.0, 0.0)
        return total, {**numbers, **component_sums(x, (x["ptx"] == 0).float())}

    def check(self, first: dict[str, float]) -> None:
        check_first_step(first)

    @staticmethod
    def _answers(batch: Batch) -> Tensor:
        return batch.mask & (batch.extras["ptx"] == 0)[:, None]


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


def _all_equal(x: Tensor) -> bool:
    return bool((x == x[0]).all())


def experience(
    trees: list[Tree], *, kl_coef: float, reward_clip: float | None, gamma: float, lam: float
) -> list[Tree]:
    """What PPO makes of measured trees: KL-shaped rewards, GAE, advantages whitened over all of them.

    Args:
        trees: with the extras old_logprobs, ref_logprobs, old_values (B, A) and scores (B,).
    """
    shaped = []
    for tree in trees:
        x = tree.extras
        mask = trained_mask(tree)
        kl = kl_k1(x["old_logprobs"], x["ref_logprobs"]) * mask
        rewards = token_rewards(kl, x["scores"], mask, kl_coef, reward_clip)
        advantages, returns = gae(rewards, x["old_values"], mask, gamma, lam)
        shaped.append(
            tree.with_extras(kl=kl, advantages=advantages, returns=returns, ptx=torch.zeros(len(mask)))
        )
    return whitened(shaped, "advantages")


def with_documents(answers: list[Tree], documents: list[Tree], coefficient: float) -> list[Tree]:
    """Answers and documents in one step; the documents' tokens weigh `coefficient` times the answers'."""
    tokens = sum(tree.n_trained for tree in answers)
    scale = coefficient * tokens / max(1, sum(tree.n_trained for tree in documents))
    names = answers[0].extras
    mixed = list(answers)
    for tree in documents:
        width = tree.n_trained
        blank = {n: torch.zeros(1) if x.dim() == 1 else torch.zeros(1, width) for n, x in names.items()}
        mixed.append(tree.with_extras(**{**blank, "ptx": torch.tensor([scale])}))
    return mixed


class MovingAverage:
    """An exponential moving average of a policy's weights, kept beside it."""

    def __init__(self, policy: TreeModel, decay: float) -> None:
        self.model = copy.deepcopy(policy).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, policy: TreeModel) -> None:
        for kept, new in zip(self.model.parameters(), policy.parameters(), strict=True):
            kept.lerp_(new.to(kept.dtype), 1 - self._decay)


@dataclass(frozen=True)
class Rollouts:
    """Answers that are sampled, scored and measured, with their advantages; after each rollout the KL's price moves."""

    roller: Roller
    options: PPOOptions
    controller: KLController
    warn: ClipWarning

    def roll(self, live: Live, places: list[int], number: int) -> list[Tree]:
        roller, options = self.roller, self.options
        trees = roller.scored(live, roller.answered(live, places, roller.seed(number)))
        self.warn(torch.cat([tree.extras["scores"] for tree in trees]))
        trees = roller.measured(
            live,
            trees,
            Want(values=True, temperature=roller.temperature),
            lambda o: {"old_logprobs": o.logprobs, "old_values": o.values},  # type: ignore[dict-item]
        )
        price = self.controller.coefficient
        trees = experience(
            trees, kl_coef=price, reward_clip=options.reward_clip, gamma=options.gamma, lam=options.lam
        )
        answers = sum(tree.n_branches for tree in trees)
        self.controller.update(sum(float(tree.extras["kl"].sum()) for tree in trees) / answers, answers)
        return trees


def build(setup: Setup) -> Parts:
    options, rolling = setup.option(PPOOptions), setup.option(RolloutOptions)
    rewards = rewards_of(setup)
    asks, documents = read_asks(setup, rewards), _documents(setup, options)
    policy = setup.load_policy()
    frozen = frozen_copy(policy)
    if rewards.models and rolling.critic_start is None:
        setup.say(
            "the critic starts from the policy, with a new head: no reward model reads the policy's own ids"
        )
    critic = _critic(setup, rolling.critic_start)
    roller = Roller(setup, policy, asks, frozen, rolling.group_size or 1, rewards, beside=[critic])
    check_apart(policy=policy, critic=critic, reference=frozen, **roller.reward_models)
    controller = KLController(rolling.kl_coef, options.kl_target, options.kl_horizon)
    rollouts = Rollouts(roller, options, controller, ClipWarning(options.reward_clip, setup.say))
    average = MovingAverage(policy, options.ema_decay) if options.ema_decay else None
    plan = rollout_plan(setup, options.ppo_epochs)

    def feed(live: Live) -> Feed:
        def roll(places: list[int], number: int) -> list[Tree]:
            setup.refresh_sampler(live, policy)
            return rollouts.roll(live, places, number)

        def mix(trees: list[Tree], step: int) -> list[Tree]:
            if not documents:
                return trees
            chosen = [documents[(step * plan.trees_per_step + i) % len(documents)] for i in range(len(trees))]
            return with_documents(trees, chosen, options.ptx_coef)

        return RolloutFeed(len(roller.asks), roll, setup.rows(policy, critic), plan, mix=mix)

    return Parts(
        trained=PolicyAndCritic(policy, critic),
        main=policy,
        objective=ClippedObjective(options, roller.temperature),
        feed=feed,
        validate=roller.validate,
        held_out=HeldOut("reward", "higher"),
        sample_prompts=setup.sample_asks(roller.held_out or roller.asks),
        controllers={"kl": controller},
        after_step=None if average is None else lambda live, step: average.update(policy),
        also_saved={"critic": critic, **({"ema": average.model} if average else {})},
        averages={} if average is None else {"ema": average.model},
    )


def _critic(setup: Setup, reward_model: str | None) -> TreeModel:
    """A trainable copy of the reward model; without one, of the policy's start with a fresh head."""
    critic = setup.load_policy(reward_model, scalar_head=True)
    return critic.without_lm_head()


def _documents(setup: Setup, options: PPOOptions) -> Sequence[Tree]:
    if options.ptx_dataset is None:
        return []
    return setup.trees(setup.load_file(options.ptx_dataset, "chat"), "ptx")


STAGE = Stage("prompt", build, (RolloutOptions, PPOOptions), samples=True, reference=lambda options: True)
