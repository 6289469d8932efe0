"""What PPO and GRPO have in common: prompts, sampling, scores, and judging the policy on held-out prompts.

It is wiring, not an algorithm: what is made of the scores is each stage's own affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from espalier.config.options import EngineOptions, Options, RunOptions, option
from espalier.config.stage_defaults import KL_COEF
from espalier.data.encode.scored import ScoreAt, closing, score_place
from espalier.data.preflight.findings import HELD_OUT
from espalier.data.steps.feed import Rows
from espalier.engine.finite import cause
from espalier.errors import UserError
from espalier.models.adapters.adapter import StepZero
from espalier.models.forward import Outputs, TreeModel, Want
from espalier.models.sampling.generate import Sampling, rows_in_memory
from espalier.rollout.asks import Asks
from espalier.rollout.experience import (
    AnswerGroup,
    Ask,
    as_judged,
    gathered,
    measure,
    sample_trees,
    scored_by_rule,
)
from espalier.rollout.feed import RolloutPlan
from espalier.rollout.rewards import RULES, TIMEOUT, Rule, find_rule, problem
from espalier.stages.model_memory import MemoryOptions, load_reward_model
from espalier.stages.parts import Live
from espalier.stages.policy import PolicyOptions, PolicyTerms
from espalier.stages.setup import Setup
from espalier.trees import Batch, Tree


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(Options):
    """Sampling and rewards."""

    reward_model: str | None = option(None, "A reward model's folder, or run:NAME.", names="model")
    reward_score_at: ScoreAt | None = option(
        None,
        "Where reward_model reads an answer: at its end token (answer) or behind the whole turn; null: as it says itself.",
    )
    reward_function: str | None = option(
        None, f"A rule: {', '.join(RULES)}, or FILE.py:FUNCTION of your own.", names="function"
    )
    reward_timeout: float = option(
        TIMEOUT,
        "Seconds that a reward_function of your own may take for an answer; then the run stops.",
        above=0,
        same_result=True,
    )
    kl_coef: float = option(KL_COEF, "The price of a nat of KL from the reference.", min=0)
    group_size: int | None = option(None, "Answers sampled to each prompt; null: 8, and 1 for PPO.", min=1)
    rollout_prompts: int | None = option(None, "Prompts sampled at a time; null: those of one step.", min=1)
    experience_batch_size: int | None = option(
        None,
        "Prompts whose answers are measured at a time on one process; null: as many as are trained at a time.",
        min=1,
        same_result=True,
    )
    max_prompt_length: int | None = option(None, "Longest prompt; null: cutoff_len - max_new_tokens.", min=1)
    max_new_tokens: int = option(128, "Longest answer.", min=1)
    temperature: float = option(1.0, "Of sampling, and of the logprobs that are trained.", above=0)
    top_p: float = option(
        1.0, "Sample from the smallest set of tokens with this probability.", above=0, max=1
    )
    top_k: int = option(0, "Sample from so many likeliest tokens; 0: all.", min=0)
    missing_eos_penalty: float = option(0.0, "Taken from the reward of an answer that did not end.", min=0)

    def problems(self) -> list[str]:
        if (self.reward_model is None) == (self.reward_function is None):
            return ["Give `reward_model` (a trained one) or `reward_function` (a rule), and not both."]
        if self.reward_score_at is not None and self.reward_model is None:
            return ["`reward_score_at` is about a `reward_model`, and none is given. Remove it."]
        reason = problem(self.reward_function) if self.reward_function is not None else None
        return [] if reason is None else [reason]


def reward_rule(setup: Setup) -> Rule | None:
    """The run's `reward_function`, looked at before a model is loaded; None where a model rewards."""
    options = setup.option(RolloutOptions)
    return find_rule(options.reward_function, options.reward_timeout) if options.reward_function else None


def longest_prompt(setup: Setup) -> int:
    """The most tokens of a prompt that leave room for an answer."""
    options = setup.option(RolloutOptions)
    room = setup.cutoff_len - options.max_new_tokens
    if room < 1:
        raise UserError(
            f"max_new_tokens {options.max_new_tokens} leaves no room for a prompt in cutoff_len "
            f"{setup.cutoff_len}. Raise cutoff_len or lower max_new_tokens."
        )
    return min(room, options.max_prompt_length or room)


def read_asks(setup: Setup) -> tuple[Asks, Asks]:
    """The prompts to train on and those that are held out; read before a model is loaded, which can take long.

    Raises:
        UserError: what is wrong with the data; no prompt is short enough.
    """
    longest = longest_prompt(setup)
    train, held_out = setup.records("prompt")
    asks = setup.asks(train, longest)
    if not asks:
        raise UserError(
            f"no prompt is at most {longest} tokens long. Raise cutoff_len, or set overlong: trim."
        )
    return asks, setup.asks(held_out, longest, HELD_OUT)


class Roller:
    """Samples answers of the present policy and scores them, on all ranks together.

    Args:
        setup: of the run.
        policy: what is sampled from (for its traits).
        asks: the prompts to train on and those that are held out.
        frozen_reference: a frozen copy, or None where the policy has an adapter: then the reference is what it is now.
        group_size: answers a prompt.
        rule: what rewards; None: the reward model of the options.
        beside: models that are trained with the policy, on the same rows.
    """

    def __init__(
        self,
        setup: Setup,
        policy: TreeModel,
        asks: tuple[Asks, Asks],
        frozen_reference: TreeModel | None,
        group_size: int,
        rule: Rule | None,
        beside: Sequence[TreeModel] = (),
    ) -> None:
        options = setup.option(RolloutOptions)
        self._setup, self._options, self._policy = setup, options, policy
        self._reference, self._group, self._beside = frozen_reference, group_size, beside
        self._start = StepZero(policy.lm) if frozen_reference is None else None
        self._rule = rule
        self.reward_model = load_reward_model(setup, options.reward_model) if options.reward_model else None
        if self.reward_model is not None:
            self._closing = closing(setup.tokenizer, setup.template)
            self._place = self._place_of_scores()
        self.temperature = options.temperature
        self.sampling = Sampling(
            options.max_new_tokens, options.temperature, options.top_p, options.top_k, setup.stop
        )
        self.asks, self.held_out = asks

    def answered(self, live: Live, places: Sequence[int], seed: Sequence[int]) -> list[AnswerGroup]:
        """Answers to these prompts: every rank samples its share, and gets all."""
        setup = self._setup
        own = list(places)[setup.rank :: setup.world]
        maker = {place: np.random.default_rng([*seed, i]) for i, place in enumerate(places)}
        # A prompt that comes twice asks its maker twice, in the order of all ranks' prompts.
        seeds = [int(maker[place].integers(2**62)) for place in places][setup.rank :: setup.world]
        own_answers = self._sample(live, [self.asks[i] for i in own], self.sampling, self._group, seeds)
        everything = gathered(own_answers, setup.world)
        # Back in the order of the prompts, whatever the number of ranks.
        count = [len(list(places)[rank :: setup.world]) for rank in range(setup.world)]
        starts = np.cumsum([0, *count])
        return [everything[starts[i % setup.world] + i // setup.world] for i in range(len(places))]

    def _sample(
        self, live: Live, asks: list[Ask], sampling: Sampling, copies: int, seeds: list[int], rows: int = 64
    ) -> list[AnswerGroup]:
        lm: nn.Module = live.sampler if live.sampler is not None else self._policy.lm
        try:
            with live.accelerator.autocast():
                return sample_trees(
                    lm,
                    self._policy.traits,
                    asks,
                    sampling,
                    self._decode,
                    copies=copies,
                    seeds=seeds,
                    rows=rows,
                )
        except UserError as broken:
            raise UserError(f"{broken} {cause(live.module)} The last checkpoint is kept.") from broken

    def _decode(self, tokens: list[int]) -> str:
        return str(self._setup.tokenizer.decode(tokens, skip_special_tokens=True))

    def scored(self, live: Live, answered: list[AnswerGroup]) -> list[Tree]:
        """Trees with ``extras["scores"]`` (B,)."""
        setup = self._setup
        if self._rule is not None:
            trees = scored_by_rule(answered, self._rule, setup.rank, setup.world, setup.show)
        else:
            assert self.reward_model is not None
            rows = setup.rows(self.reward_model)
            shown = [as_judged(a, self._closing, self._place) for a in answered]
            judged = measure(shown, rows, lambda batch: self._judged(live, batch))
            _check_scores(judged)
            trees = [
                a.tree.with_extras(scores=t.extras["scores"]) for a, t in zip(answered, judged, strict=True)
            ]
        if not self._options.missing_eos_penalty:
            return trees
        fines = [
            torch.tensor([0.0 if e else self._options.missing_eos_penalty for e in a.ended]) for a in answered
        ]
        return [t.with_extras(scores=t.extras["scores"] - fine) for t, fine in zip(trees, fines, strict=True)]

    def _place_of_scores(self) -> ScoreAt:
        """Where the reward model is read; says so where nobody has said it and it makes a difference."""
        assert self.reward_model is not None
        said = self._options.reward_score_at or self.reward_model.score_at
        place = score_place(said)
        if said is None and self._closing.tail:
            self._setup.say(
                f"{self._options.reward_model}: does not say at which token it scores an answer, so it is read behind the "
                "whole turn, as model cards do; reward_score_at: answer reads it at the end token (the exam reward:FILE "
                "shows the accuracy of both)"
            )
        return place

    @torch.no_grad()
    def _judged(self, live: Live, batch: Batch) -> dict[str, Tensor]:
        assert self.reward_model is not None
        with live.accelerator.autocast():
            scores = self.reward_model(batch, Want(logprobs=False, scores=True)).scores
        assert scores is not None
        return {"scores": scores.float()}

    def measured(
        self, live: Live, trees: list[Tree], want: Want, names: Callable[[Outputs], dict[str, Tensor]]
    ) -> list[Tree]:
        """Trees with what the policy (`names` of its outputs) and the reference (``ref_logprobs``) say."""

        def run(batch: Batch) -> dict[str, Tensor]:
            extras = names(live.run(batch, want))
            return {**extras, "ref_logprobs": self._by_reference(live, batch)}

        rows = self._setup.rows(self._policy, *self._beside, records=self._options.experience_batch_size)
        return measure(trees, rows, run)

    @torch.no_grad()
    def _by_reference(self, live: Live, batch: Batch) -> Tensor:
        want = Want(temperature=self.temperature)
        with live.accelerator.autocast():
            if self._start is None:
                assert self._reference is not None
                outputs: Outputs = self._reference(batch, want)
            else:
                with self._start():
                    outputs = self._policy(batch, want)
        assert outputs.logprobs is not None
        return outputs.logprobs.float()

    def held_out_answers(self, live: Live, samples: int) -> list[AnswerGroup]:
        """So many sampled answers to each held-out prompt by fixed seeds, then the likeliest one; all on every rank."""
        rank, world, count = self._setup.rank, self._setup.world, len(self.held_out)
        sampling = replace(self.sampling, likeliest=True)
        rows = rows_in_memory(self._policy.lm, sampling.max_new_tokens)
        seeds = list(range(count))[rank::world]
        own = self._sample(live, self.held_out[rank::world], sampling, samples + 1, seeds, rows)
        everything = gathered(own, world)
        starts = np.cumsum([0, *(len(range(count)[r::world]) for r in range(world))])
        return [everything[starts[i % world] + i // world] for i in range(count)]

    def seed(self, rollout: int) -> list[int]:
        return [self._setup.option(RunOptions).seed, 7, rollout]


def _check_scores(trees: list[Tree]) -> None:
    """A reward model that says nan would spoil the advantages of a whole rollout."""
    for tree in trees:
        for score in tree.extras["scores"].tolist():
            if not math.isfinite(score):
                raise UserError(
                    f"the reward model gives {score} for an answer to the prompt {tree.source}: its weights are "
                    "broken. Look at reward_model; the last checkpoint is kept."
                )


def policy_terms(setup: Setup, kl_coef: Callable[[], float]) -> PolicyTerms:
    """The run's terms of a policy's loss; `kl_coef` says the present price of KL."""
    return PolicyTerms(
        setup.option(PolicyOptions),
        kl_coef,
        setup.option(RolloutOptions).temperature,
        setup.option(EngineOptions).precision,
        exact_reference=setup.option(MemoryOptions).frozen_bits is None,
    )


def rollout_plan(setup: Setup, asks: Asks, rows: Rows, group_size: int, passes: int) -> RolloutPlan:
    """How the prompts of a run become rollouts and steps.

    With `tokens_per_step` a step takes as many prompts as surely fit: nobody knows before how long the answers will be,
    and the number of steps, which the learning rate follows, must not depend on it.

    Args:
        asks: to be trained on.
        rows: of the models that are trained.
        group_size: answers to a prompt.
        passes: over each rollout.

    Raises:
        UserError: `tokens_per_step` is too little for one prompt with its answers.
    """
    plan, new_tokens = setup.plan, setup.option(RolloutOptions).max_new_tokens
    per_step = plan.trees_per_step
    if per_step is None:
        assert plan.tokens_per_step is not None
        shared = rows.shares_prompts and not rows.unshared
        most = (asks.longest if shared else group_size * asks.longest) + group_size * new_tokens
        per_step = plan.tokens_per_step // most
        what = f"a prompt of up to {asks.longest} tokens with {group_size} answers of up to {new_tokens}"
        if not per_step:
            raise UserError(
                f"tokens_per_step {plan.tokens_per_step} is too little for {what}: that can be {most} tokens. Raise it, or "
                "lower max_prompt_length, max_new_tokens or group_size."
            )
        setup.say(f"a step takes {per_step} prompts: {what}, is at most {most} tokens")
    return RolloutPlan(
        setup.option(RolloutOptions).rollout_prompts or per_step,
        per_step,
        passes,
        plan.epochs,
        plan.max_steps,
        plan.seed,
    )
