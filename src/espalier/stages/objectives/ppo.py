"""Proximal policy optimisation from human feedback (Ouyang et al. 2022), whole and on one machine.

A policy, a critic that starts from the reward model (`stages.critic`), a frozen reference, and a reward model or a rule.
The experience of a rollout is made in its feed: sampled trees, old and reference logprobs, values, per-token rewards
(the KL from the reference on every token, the clipped score on the last), GAE, whitened advantages (`stages.shaping`).
The loss is the clipped policy loss plus the clipped value loss, plus on request an entropy bonus (`stages.policy`) and
the likelihood of a data set of its own (PPO-ptx, `stages.ptx`).

Not here: a value head on the policy's own body.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from espalier.config.option_set import OptionSet
from espalier.config.options import EngineOptions, Options, option
from espalier.data.steps.feed import Feed
from espalier.engine.track import Numbers
from espalier.maths.losses import clipped_policy, clipped_value, nll
from espalier.maths.metrics import clip_fraction
from espalier.maths.reduce import masked_sum
from espalier.models.forward import Outputs, TreeModel, Want
from espalier.rollout.experience import AnswerGroup
from espalier.rollout.feed import RolloutFeed
from espalier.rollout.scored import RewardList, component_sums
from espalier.stages.critic import CriticOptions, PolicyAndCritic, foresee
from espalier.stages.guards import check_apart
from espalier.stages.judged import Critic, Judged, JudgedOptions, find_yardstick
from espalier.stages.model_memory import (
    MemoryOptions,
    check_memory,
    load_critic,
    load_reference,
    park_frozen,
    share_blocks,
    share_weights,
)
from espalier.stages.moving_average import MovingAverage
from espalier.stages.parts import HeldOut, Live, Parts, Pieces
from espalier.stages.policy import PolicyOptions, PolicyTerms, learned
from espalier.stages.ptx import PtxOptions, load_documents
from espalier.stages.quantised import holds_whole
from espalier.stages.reference_answers import check_references
from espalier.stages.rollout_options import RolloutOptions
from espalier.stages.rollout_plan import rollout_plan
from espalier.stages.rollouts import (
    Roller,
    policy_terms,
    read_asks,
    rewards_of,
)
from espalier.stages.served import ServerOptions, check_served
from espalier.stages.setup import Setup
from espalier.stages.shaping import (
    ClipWarning,
    KLController,
    ScoreNormalizer,
    ShapingOptions,
    experience,
    find_normalizer,
    with_shaped,
)
from espalier.stages.stage import Stage
from espalier.trees import Batch, Tree


@dataclass(frozen=True, kw_only=True)
class PPOOptions(Options):
    """The PPO stage."""

    clip_range: float = option(0.2, "How far the ratio of policies may go from 1 and still pay.", above=0)
    ppo_epochs: int = option(1, "Passes over the answers of a rollout.", min=1)
    ema_decay: float | None = option(
        None, "Keep a moving average of the policy, such as 0.992.", above=0, below=1
    )


REFERENCES = 256
"""So many reference answers give the mean and the standard deviation of scores, to 6 % of the latter."""


@dataclass(frozen=True)
class Weights:
    """What the parts of PPO's loss weigh, and where they are cut.

    Attributes:
        clip: of the ratio of policies.
        clip_value: of values.
        value, policy: of the two losses.
        cut: scores beyond it were cut.
    """

    clip: float = 0.2
    clip_value: float = 0.2
    value: float = 0.1
    policy: float = 1.0
    cut: float = math.inf


class ClippedObjective:
    """PPO's loss over the extras that the feed has put on the trees.

    Extras: old_logprobs, ref_logprobs, old_values, advantages, returns (B, A); kl (B, A), scores, shaped and price (B,)
    to be logged; ptx (B,), 0 for answers and for documents the weight of a token's nll against an answer's token.
    """

    def __init__(self, weights: Weights, terms: PolicyTerms) -> None:
        self._weights, self._terms = weights, terms
        self.want = replace(terms.want, values=True)

    def count(self, batch: Batch) -> float:
        return float(self._answers(batch).sum())

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        assert outputs.logprobs is not None and outputs.values is not None
        x, mask, w = batch.extras, self._answers(batch), self._weights
        policy = clipped_policy(outputs.logprobs, x["old_logprobs"], x["advantages"], w.clip, w.clip)
        value = clipped_value(outputs.values, x["old_values"], x["returns"], w.clip_value)
        policy = self._terms.clipped(policy, x["advantages"], x) + self._terms.added(
            outputs, x["ref_logprobs"]
        )
        policy_sum, value_sum = masked_sum(policy, mask), masked_sum(value, mask)
        documents = batch.mask & (x["ptx"] > 0)[:, None]
        likelihood = nll(outputs.logprobs) * x["ptx"][:, None]
        ptx_sum = masked_sum(likelihood, documents)
        total = w.policy * policy_sum + w.value * value_sum + ptx_sum
        tokens, answers = mask.sum(), (x["ptx"] == 0).sum()
        whole = batch.mask & (x["ptx"] == 0)[:, None]
        clipped = clip_fraction(outputs.logprobs.detach(), x["old_logprobs"], x["advantages"], w.clip, w.clip)
        numbers: dict[str, tuple[Tensor | float, Tensor | float]] = {
            "loss": (total.detach(), tokens),
            "policy_loss": (policy_sum.detach(), tokens),
            "value_loss": (value_sum.detach(), tokens),
            **self._terms.numbers(outputs, x, whole),
            "clip_fraction": (masked_sum(clipped, mask), tokens),
            "kl": (masked_sum(x["kl"], whole), answers),
            "reward": ((x["scores"] * (x["ptx"] == 0)).sum(), answers),
            "score_clipped": (((x["shaped"].abs() > w.cut) & (x["ptx"] == 0)).sum(), answers),
            "answer_tokens": (whole.sum(), answers),
        }
        if "price" in x:
            numbers["kl_coef"] = ((x["price"] * (x["ptx"] == 0)).sum(), answers)
        if bool(documents.any()):
            numbers["ptx_loss"] = (masked_sum(nll(outputs.logprobs).detach(), documents), documents.sum())
        else:
            numbers["ptx_loss"] = (0.0, 0.0)
        return total, {**numbers, **component_sums(x, (x["ptx"] == 0).float())}

    def check(self, first: dict[str, float]) -> None:
        self._terms.check(first)

    @staticmethod
    def _answers(batch: Batch) -> Tensor:
        """(B, A) the tokens that are learned from, documents aside."""
        return learned(batch) & (batch.extras["ptx"] == 0)[:, None]


@dataclass(frozen=True)
class Rollouts:
    """Answers that are sampled, scored and measured, with their advantages; after each rollout the KL's price moves."""

    roller: Roller
    options: ShapingOptions
    terms: PolicyTerms
    controller: KLController
    normalizer: ScoreNormalizer
    warn: ClipWarning

    def roll(self, live: Live, places: list[int], number: int) -> list[Tree]:
        answered = self.roller.answered(live, places, self.roller.seed(number))
        return self.compared(self.measured(live, self.scored(live, answered)))

    def scored(self, live: Live, answered: list[AnswerGroup]) -> list[Tree]:
        if self.normalizer.wants_references:
            self.normalizer.take(self._references(live))
        trees = with_shaped(self.roller.scored(live, answered), self.normalizer)
        self.warn(torch.cat([tree.extras["shaped"] for tree in trees]))
        return trees

    def measured(self, live: Live, trees: list[Tree]) -> list[Tree]:
        measured = self.roller.measured(
            live,
            trees,
            Want(values=True, temperature=self.roller.temperature),
            lambda o: {"old_logprobs": o.logprobs, "old_values": o.values},  # type: ignore[dict-item]
        )
        return self.roller.trusted(measured)

    def compared(self, trees: list[Tree]) -> list[Tree]:
        """Scored and measured trees with their advantages; the KL's price is that of the next rollout afterwards."""
        trees = experience(trees, self.options, self.terms)
        self.terms.guard.begin()
        answers = sum(tree.n_branches for tree in trees)
        self.controller.update(sum(float(tree.extras["kl"].sum()) for tree in trees) / answers, answers)
        return trees

    def _references(self, live: Live) -> Tensor:
        """(N,) the rewards of the first prompts' reference answers."""
        found = torch.tensor(self.roller.reference_rewards(live, self.roller.asks[:REFERENCES]))
        return found[~found.isnan()]


def build(setup: Setup) -> Parts:
    options, rolling = setup.option(PPOOptions), setup.option(RolloutOptions)
    shaping = setup.option(ShapingOptions)
    rewards = rewards_of(setup)
    asks, documents = read_asks(setup, rewards), load_documents(setup)
    if shaping.score_normalization == "reference":
        check_references(asks[0][:REFERENCES], "score_normalization: reference")
    yardstick = find_yardstick(setup, asks[1])
    group_size = rolling.group_size or 1
    policy = setup.load_policy()
    frozen = load_reference(setup, policy)
    if rewards.models and rolling.critic_start is None:
        setup.say(
            "the critic starts from the policy, with a new head: no reward model reads the policy's own ids"
        )
    critic = load_critic(setup, rolling.critic_start)
    roller = Roller(setup, policy, asks, frozen, group_size, rewards, beside=[critic])
    check_apart(policy=policy, critic=critic, reference=frozen, **roller.reward_models)
    share_weights(setup, policy, critic=critic, reference=frozen, **roller.reward_models)
    share_blocks(setup, policy=policy, critic=critic, reference=frozen)
    park_frozen(setup, PolicyAndCritic(policy, critic), reference=frozen, **roller.reward_models)
    controller = KLController(rolling.kl_coef, shaping.kl_target, shaping.kl_horizon)
    normalizer = _normalizer(setup, roller, rewards, critic)
    terms = policy_terms(setup, lambda: controller.coefficient)
    warn = ClipWarning(shaping.reward_clip, setup.say)
    rollouts = Rollouts(roller, shaping, terms, controller, normalizer, warn)
    judged = Judged(setup, roller, yardstick, _critic_judged(rollouts))
    average = MovingAverage(policy, options.ema_decay) if options.ema_decay else None
    plan = rollout_plan(setup, asks[0], setup.rows(policy, critic), group_size, options.ppo_epochs)
    objective = ClippedObjective(_weights(setup), terms)

    def feed(live: Live) -> Feed:
        def roll(places: list[int], number: int) -> list[Tree]:
            setup.refresh_sampler(live, policy)
            return rollouts.roll(live, places, number)

        return RolloutFeed(len(roller.asks), roll, setup.rows(policy, critic), plan, mix=documents.mixed)

    def after_step(live: Live, step: int) -> None:
        terms.guard.after_step(live)
        if average is not None:
            average.update(live, policy)

    return Parts(
        trained=PolicyAndCritic(policy, critic),
        main=policy,
        objective=objective,
        feed=feed,
        validate=judged.validate,
        watch=judged.watch,
        held_out=HeldOut("reward", "higher"),
        sample_prompts=setup.sample_asks(roller.held_out or roller.asks),
        controllers={"kl": controller, "scores": normalizer},
        after_step=after_step,
        learns=lambda batch: not terms.guard.shut and objective.count(batch) > 0,
        paces=setup.option(CriticOptions).paces,
        also_saved={"critic": critic, **({"ema": average.model} if average else {})},
        averages={} if average is None else {"ema": average.model},
        pieces=Pieces(*asks, roller.answered, rollouts.scored, rollouts.measured, rollouts.compared),
    )


def _normalizer(setup: Setup, roller: Roller, rewards: RewardList, critic: TreeModel) -> ScoreNormalizer:
    """How scores are normalised; a critic that starts as the reward model says the same from its first step on."""
    rolling = setup.option(RolloutOptions)
    weighed = {spec.name: (spec.weight, roller.module_of(spec.name)) for spec in rewards.specs}
    relative = rolling.reward_baseline != "none"
    found = find_normalizer(setup.option(ShapingOptions).score_normalization, weighed, relative=relative)
    # A head that is shifted is saved beside its whole model, which no process has where weights are cut.
    if (
        found.shift is not None
        and rolling.critic_start is not None
        and holds_whole(setup.option(EngineOptions))
    ):
        ((weight, _),) = weighed.values()
        foresee(critic, weight, *found.shift)
    return found


def _critic_judged(rollouts: Rollouts) -> Critic:
    """The critic against the rewards that came, at the present price of KL."""
    options, present = replace(rollouts.options, lam=1.0), rollouts.normalizer.present

    def shaped(trees: list[Tree]) -> list[Tree]:
        return experience(with_shaped(trees, present), options, rollouts.terms)

    return Critic(shaped, lambda: rollouts.controller.coefficient, present, options.reward_clip)


def _weights(setup: Setup) -> Weights:
    critic, cut, ptx = (
        setup.option(CriticOptions),
        setup.option(ShapingOptions).reward_clip,
        setup.option(PtxOptions),
    )
    return Weights(
        setup.option(PPOOptions).clip_range,
        critic.clip_range_value,
        critic.vf_coef,
        1 - ptx.ptx_coef if ptx.ptx_mix == "convex" else 1.0,
        math.inf if cut is None else cut,
    )


def _check(options: OptionSet) -> None:
    check_memory(options)
    check_served(options)


STAGE = Stage(
    "prompt",
    build,
    (
        RolloutOptions,
        PolicyOptions,
        ShapingOptions,
        JudgedOptions,
        CriticOptions,
        PPOOptions,
        PtxOptions,
        MemoryOptions,
        ServerOptions,
    ),
    samples=True,
    reference=lambda options: True,
    check=_check,
)
