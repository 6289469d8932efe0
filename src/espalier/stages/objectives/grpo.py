"""Group-relative policy optimisation (Shao et al. 2024) and its relatives: no critic.

A group of answers to one prompt is one tree: the prompt is sampled from, measured and trained on once for
all of them. An answer's advantage is its score against its group's. The KL from the reference, if it has a
price, is a loss of its own (k3), not a reward.

Relatives are rows of four tables: `advantages` says what an answer is compared with, `importance_sampling_level`
whether a token or an answer has a ratio of policies (GSPO), `policy_loss` what becomes of ratios far from 1 (PPO's
clip or CISPO), and `loss_average` over what the loss is averaged: all tokens of the step (DAPO, Yu et al. 2025), each
answer first (GRPO as published), or the constant max_new_tokens (Dr. GRPO, Liu et al. 2025). `algorithm: NAME` writes
the rows of a paper (`espalier.config.names`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from espalier.config.option_set import OptionSet
from espalier.config.options import Options, option
from espalier.data.steps.feed import Feed
from espalier.engine.track import Numbers
from espalier.errors import UserError
from espalier.maths.advantages import ADVANTAGES, kl_k3
from espalier.maths.losses import POLICIES, RATIOS
from espalier.maths.metrics import clip_fraction
from espalier.maths.reduce import masked_sum
from espalier.models.forward import Outputs, TreeModel, Want
from espalier.models.offload import resident
from espalier.rollout.experience import measure, trained_mask
from espalier.rollout.feed import RolloutFeed
from espalier.rollout.scored import component_sums
from espalier.stages.groups import GroupOptions, Groups, check_groups
from espalier.stages.guards import check_apart
from espalier.stages.judged import Judged, JudgedOptions, find_yardstick
from espalier.stages.model_memory import (
    MemoryOptions,
    check_memory,
    load_reference,
    park_frozen,
    share_blocks,
    share_weights,
)
from espalier.stages.parts import HeldOut, Live, Parts, Pieces
from espalier.stages.policy import PolicyOptions, PolicyTerms, learned
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
from espalier.stages.stage import Stage
from espalier.trees import Batch, Tree

if TYPE_CHECKING:
    AdvantageName = str
    PolicyName = str
    RatioName = str
else:  # what help, documents and the check of a file show are the rows of the tables
    AdvantageName = Literal[tuple(ADVANTAGES)]
    PolicyName = Literal[tuple(POLICIES)]
    RatioName = Literal[tuple(RATIOS)]


@dataclass(frozen=True, kw_only=True)
class GRPOOptions(Options):
    """The GRPO stage."""

    advantages: AdvantageName = option(
        "grpo",
        "An answer's score against its group: standardised, centred, against the others, or by the rollout's spread; or "
        "against all of the rollout.",
    )
    policy_loss: PolicyName = option(
        "clip", "No gradient where the ratio of policies has gone too far (clip), or a cut weight (cispo)."
    )
    importance_sampling_level: RatioName = option(
        "token", "A ratio of policies for each token, or for each answer (GSPO)."
    )
    loss_average: Literal["token", "answer", "constant"] = option(
        "token", "Average over all tokens of the step, over each answer first, or over max_new_tokens."
    )
    clip_low: float = option(0.2, "How far the ratio of policies may fall below 1 and still pay.", above=0)
    clip_high: float = option(0.2, "How far it may rise above 1 and still pay (DAPO: 0.28).", above=0)
    teacher_model: str | None = option(
        None, "A model of any size whose words are wanted, too (on-policy distillation).", names="model"
    )
    teacher_coef: float = option(
        1.0, "A token's advantage grows by so many times its log-ratio of teacher to policy.", min=0
    )
    grpo_epochs: int = option(1, "Passes over the answers of a rollout.", min=1)

    def problems(self) -> list[str]:
        default = type(self).__dataclass_fields__["clip_low"].default
        if self.policy_loss == "cispo" and self.clip_low != default:
            return ["`clip_low` belongs to policy_loss: clip; cispo cuts ratios from above only. Remove one."]
        return []


class GroupObjective:
    """The clipped policy loss with one advantage an answer, plus what `PolicyTerms` adds (k3 times its price).

    Extras: old_logprobs, ref_logprobs (B, A); advantages, scores (B,). With a teacher also teacher_kl (B, A), log policy -
    log teacher of the sampled tokens: taken from the advantages, its gradient is that of KL(policy || teacher), the
    reverse KL of Agarwal et al. 2024 (GKD) on the policy's own answers.
    """

    def __init__(self, options: GRPOOptions, max_new_tokens: int, terms: PolicyTerms) -> None:
        self._low, self._high = options.clip_low, options.clip_high
        self._teacher_coef = options.teacher_coef
        self._ratios, self._policy = RATIOS[options.importance_sampling_level], POLICIES[options.policy_loss]
        self._average, self._constant = options.loss_average, max_new_tokens
        self._terms, self.want = terms, terms.want

    def count(self, batch: Batch) -> float:
        mask = learned(batch)
        return float(mask.sum() if self._average == "token" else mask.any(1).sum())

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        assert outputs.logprobs is not None
        x, mask = batch.extras, learned(batch)
        advantages = x["advantages"][:, None]
        if "teacher_kl" in x:
            advantages = advantages - self._teacher_coef * x["teacher_kl"]
        log_weights = self._ratios(outputs.logprobs - x["old_logprobs"], mask)
        each = self._policy(outputs.logprobs, log_weights, advantages, self._low, self._high)
        each = self._terms.clipped(each, advantages, x) + self._terms.added(outputs, x["ref_logprobs"])
        total = masked_sum(each * self._weights(mask), mask)
        kl = kl_k3(outputs.logprobs, x["ref_logprobs"])
        weights = log_weights.detach()
        clipped = clip_fraction(weights, torch.zeros_like(weights), advantages, self._low, self._high)
        tokens, answers = mask.sum(), batch.n_branches
        groups = x["advantages"].new_zeros(batch.n_trees)
        split = groups.index_add(0, batch.tree_id, x["advantages"].abs()) > 0
        numbers: dict[str, tuple[Tensor | float, Tensor | float]] = {
            "loss": (total.detach(), self.count(batch)),
            "reward": (x["scores"].sum(), answers),
            "kl": (masked_sum(kl.detach(), batch.mask), answers),
            **self._terms.numbers(outputs, x, batch.mask),
            "clip_fraction": (masked_sum(clipped, mask), tokens),
            "answer_tokens": (batch.mask.sum(), answers),
            "groups_with_spread": (split.sum(), batch.n_trees),
        }
        if "teacher_kl" in x:
            numbers["teacher_kl"] = (masked_sum(x["teacher_kl"], batch.mask), answers)
        if "sampled" in x:
            numbers["sampled_groups"] = (x["sampled"].sum(), answers)
        return total, {**numbers, **component_sums(x, torch.ones_like(x["scores"]))}

    def _weights(self, mask: Tensor) -> Tensor:
        """(B, 1) what a token of each answer weighs."""
        if self._average == "token":
            return torch.ones_like(mask[:, :1], dtype=torch.float32)
        if self._average == "constant":
            return torch.full_like(mask[:, :1], 1 / self._constant, dtype=torch.float32)
        return 1 / mask.sum(1, keepdim=True).clamp(min=1)

    def check(self, first: dict[str, float]) -> None:
        self._terms.check(first)


def with_advantages(
    trees: Sequence[Tree], compare: Callable[[Tensor, Tensor], Tensor], terms: PolicyTerms
) -> list[Tree]:
    """The measured groups of a rollout with their advantages, and whether anything can be learned from each at all.

    Where the KL is paid in the reward, an answer's score loses that of its tokens first.

    Extras: ``signal`` (B,) is 1 where an answer is better than what it is compared with, or the policy has left the
    reference and that has a price in the loss. Where all answers are equal and policy and reference say the very same,
    the loss has no slope but rounding errors.
    """
    sizes = torch.tensor([tree.n_branches for tree in trees])
    tree_id = torch.arange(len(trees)).repeat_interleave(sizes)
    every = compare(torch.cat([_paid(tree, terms) for tree in trees]), tree_id)
    made = []
    for at, tree in enumerate(trees):
        x, advantages = tree.extras, every[tree_id == at]
        left = terms.loss_price() > 0 and not torch.equal(x["old_logprobs"], x["ref_logprobs"])
        taught = bool(x.get("teacher_kl", advantages).any())
        signal = torch.full_like(advantages, float(left or taught or bool((advantages != 0).any())))
        made.append(tree.with_extras(advantages=advantages, signal=signal))
    return made


def _paid(tree: Tree, terms: PolicyTerms) -> Tensor:
    """(B,) the scores of a group after what its KL costs in the reward."""
    scores, price = tree.extras["scores"], terms.reward_price()
    if not price:
        return scores
    kl = terms.kl(tree.extras["old_logprobs"], tree.extras["ref_logprobs"])
    return scores - price * masked_sum(kl, trained_mask(tree), 1)


def with_teacher(
    setup: Setup, live: Live, teacher: TreeModel, trees: list[Tree], temperature: float
) -> list[Tree]:
    """Measured groups with ``extras["teacher_kl"]`` (B, A)."""

    @torch.no_grad()
    def run(batch: Batch) -> dict[str, Tensor]:
        with live.accelerator.autocast():
            logprobs = teacher(batch, Want(temperature=temperature)).logprobs
        assert logprobs is not None
        return {"teacher_kl": logprobs.float()}

    with resident(teacher):
        said = measure(trees, setup.rows(teacher), run)
    return [
        tree.with_extras(
            teacher_kl=(tree.extras["old_logprobs"] - tree.extras["teacher_kl"]) * trained_mask(tree)
        )
        for tree in said
    ]


def build(setup: Setup) -> Parts:
    options, rolling = setup.option(GRPOOptions), setup.option(RolloutOptions)
    rewards = rewards_of(setup)
    asks = read_asks(setup, rewards)
    yardstick = find_yardstick(setup, asks[1])
    policy = setup.load_policy()
    frozen = load_reference(setup, policy)
    roller = Roller(setup, policy, asks, frozen, rolling.group_size or 8, rewards)
    teacher = setup.load_frozen(options.teacher_model) if options.teacher_model else None
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    check_apart(policy=policy, reference=frozen, teacher=teacher, **roller.reward_models)
    share_weights(setup, policy, reference=frozen, **roller.reward_models)
    share_blocks(setup, policy=policy, reference=frozen)
    park_frozen(setup, policy, reference=frozen, teacher=teacher, **roller.reward_models)
    groups = Groups(roller, setup.option(GroupOptions), rolling.max_new_tokens)
    terms = policy_terms(setup, lambda: rolling.kl_coef)
    judged = Judged(setup, roller, yardstick)
    compare = ADVANTAGES[options.advantages]
    plan = rollout_plan(setup, asks[0], setup.rows(policy), rolling.group_size or 8, options.grpo_epochs)

    def measured(live: Live, trees: list[Tree]) -> list[Tree]:
        want = Want(temperature=roller.temperature)
        trees = roller.measured(live, trees, want, lambda o: {"old_logprobs": o.logprobs})  # type: ignore[dict-item]
        trees = roller.trusted(trees)
        return trees if teacher is None else with_teacher(setup, live, teacher, trees, roller.temperature)

    def compared(trees: list[Tree]) -> list[Tree]:
        terms.guard.begin()
        return with_advantages(trees, compare, terms)

    def feed(live: Live) -> Feed:
        def roll(places: list[int], number: int) -> list[Tree]:
            setup.refresh_sampler(live, policy)
            return compared(measured(live, groups.roll(live, places, number)))

        return RolloutFeed(len(roller.asks), roll, setup.rows(policy), plan)

    return Parts(
        trained=policy,
        main=policy,
        objective=GroupObjective(options, rolling.max_new_tokens, terms),
        feed=feed,
        validate=judged.validate,
        watch=judged.watch,
        held_out=HeldOut("reward", "higher"),
        after_step=lambda live, step: terms.guard.after_step(live),
        learns=lambda batch: (
            not terms.guard.shut and bool((learned(batch) & (batch.extras["signal"] > 0)[:, None]).any())
        ),
        sample_prompts=setup.sample_asks(roller.held_out or roller.asks),
        pieces=Pieces(*asks, roller.answered, groups.scored, measured, compared, groups.unlike),
    )


def _check(options: OptionSet) -> None:
    rolling, own = options[RolloutOptions], options[GRPOOptions]
    check_memory(options)
    check_served(options)
    check_groups(options)
    if rolling.group_size == 1 and own.advantages != "reinforce_pp":
        raise UserError(
            "group_size: 1 in grpo: an answer is compared with the others of its group, and alone it has no "
            "advantage. Give 2 or more (null is 8), advantages: reinforce_pp, or use stage: ppo."
        )


STAGE = Stage(
    "prompt",
    build,
    (RolloutOptions, PolicyOptions, JudgedOptions, GRPOOptions, GroupOptions, MemoryOptions, ServerOptions),
    samples=True,
    reference=lambda options: True,
    check=_check,
)
