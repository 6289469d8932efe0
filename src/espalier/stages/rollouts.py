"""What PPO and GRPO have in common: prompts, sampling, scores, and judging the policy on held-out prompts.

It is wiring, not an algorithm: what is made of the scores is each stage's own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from espalier.config.options import EngineOptions, RunOptions
from espalier.data.preflight.findings import HELD_OUT
from espalier.engine.finite import cause
from espalier.engine.hardware import free_bytes
from espalier.errors import UserError
from espalier.models.adapters.adapter import StepZero
from espalier.models.forward import Outputs, TreeModel, Want
from espalier.models.offload import resident
from espalier.models.sampling.generate import Sampling
from espalier.models.sampling.room import Room, room_for, to_come
from espalier.rollout.asked import Ask
from espalier.rollout.asks import Asks
from espalier.rollout.experience import (
    AnswerGroup,
    gathered,
    measure,
    sample_trees,
)
from espalier.rollout.scored import RewardList
from espalier.stages.model_memory import MemoryOptions
from espalier.stages.parts import Live
from espalier.stages.policy import PolicyOptions, PolicyTerms
from espalier.stages.reference_answers import ReferenceAnswers, check_references
from espalier.stages.reward_models import load_reward_model
from espalier.stages.rewarding import reward_list
from espalier.stages.rollout_options import RolloutOptions
from espalier.stages.served import served_sampling
from espalier.stages.setup import Setup
from espalier.trees import Batch, Tree


def rewards_of(setup: Setup) -> RewardList:
    """The run's rewards, looked at before a model is loaded."""
    return reward_list(setup, setup.option(RolloutOptions))


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


def read_asks(setup: Setup, rewards: RewardList) -> tuple[Asks, Asks]:
    """The prompts to train on and those that are held out; read before a model is loaded, which can take long.

    Raises:
        UserError: what is wrong with the data; no prompt is short enough, or one lacks what a reward needs.
    """
    longest = longest_prompt(setup)
    train, held_out = setup.records("prompt")
    asks = setup.asks(train, longest)
    if not asks:
        raise UserError(
            f"no prompt is at most {longest} tokens long. Raise cutoff_len, or set overlong: trim."
        )
    judged = setup.asks(held_out, longest, HELD_OUT)
    rewards.check(chain(asks, judged))
    if setup.option(RolloutOptions).reward_baseline == "reference":
        check_references(chain(asks, judged), "reward_baseline: reference")
    return asks, judged


class Roller:
    """Samples answers of the present policy and scores them, on all ranks together.

    Args:
        setup: of the run.
        policy: what is sampled from (for its traits).
        asks: the prompts to train on and those that are held out.
        frozen_reference: a frozen copy, or None where the policy has an adapter: then the reference is what it is now.
        group_size: answers a prompt.
        rewards: what answers are scored by.
        beside: models that are trained with the policy, on the same rows.
    """

    def __init__(
        self,
        setup: Setup,
        policy: TreeModel,
        asks: tuple[Asks, Asks],
        frozen_reference: TreeModel | None,
        group_size: int,
        rewards: RewardList,
        beside: Sequence[TreeModel] = (),
    ) -> None:
        options = setup.option(RolloutOptions)
        self._setup, self._options, self._policy = setup, options, policy
        self._reference, self._group, self._beside = frozen_reference, group_size, beside
        self._start = StepZero(policy.lm) if frozen_reference is None else None
        self._rewards, self._references = rewards, ReferenceAnswers(setup)
        self._models = {spec.name: load_reward_model(setup, spec) for spec in rewards.models}
        rewards.ensemble.learn(
            {name: getattr(model.module, "score_moments", None) for name, model in self._models.items()}
        )
        self.temperature = options.temperature
        self.sampling = Sampling(
            options.max_new_tokens, options.temperature, options.top_p, options.top_k, setup.stop
        )
        self.asks, self.held_out = asks
        self._served = served_sampling(setup, policy)
        self._rows = 0 if self._served is not None else self._room().rows

    def _room(self) -> Room:
        """How many answers are sampled at a time; said in one line."""
        setup, lm = self._setup, self._policy.lm
        device = next(lm.parameters()).device
        free = free_bytes(device)
        if device.type == "cpu":  # which all processes share
            free //= setup.world
        free -= to_come([self._policy.lm, *(model.lm for model in self._beside)])
        longest = max(
            (asks.longest for asks in (self.asks, self.held_out) if isinstance(asks, Asks)), default=0
        )
        lengths = longest, self._options.max_new_tokens
        room = room_for(
            lm, self._policy.traits, lengths, self._group, self._options.generation_batch_size, free
        )
        setup.say(str(room))
        return room

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
        self, live: Live, asks: list[Ask], sampling: Sampling, copies: int, seeds: list[int]
    ) -> list[AnswerGroup]:
        if self._served is not None:
            return self._served.sample(asks, sampling, copies, seeds, self._decode)
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
                    rows=self._rows,
                )
        except UserError as broken:
            raise UserError(f"{broken} {cause(live.module)} The last checkpoint is kept.") from broken

    def _decode(self, tokens: list[int]) -> str:
        return str(self._setup.tokenizer.decode(tokens, skip_special_tokens=True))

    @property
    def reward_models(self) -> dict[str, nn.Module]:
        """The trained models among the rewards, by what messages call them."""
        return {f"reward {name}": model.module for name, model in self._models.items()}

    def module_of(self, reward: str) -> nn.Module | None:
        """The trained model behind a reward; None of a rule."""
        return self._models[reward].module if reward in self._models else None

    def components(self, live: Live, answered: list[AnswerGroup]) -> list[dict[str, Tensor]]:
        """Of each group: name -> (B,) of each reward, nan where one gave no number."""
        setup = self._setup
        found = self._rewards.by_rules(answered, setup.rank, setup.world, setup.show)
        for name, model in self._models.items():
            for group, scores in zip(found, model.scores(live, answered), strict=True):
                group[name] = scores
        return found

    def scored(self, live: Live, answered: list[AnswerGroup], *, may_be_none: bool = False) -> list[Tree]:
        """Trees of the answers that have a reward; of their extras see `RewardList.whole`.

        A prompt none of whose answers has one gives no tree.

        Raises:
            UserError: there is no tree at all, unless there may be none.
        """
        found, fines = self.components(live, answered), self._fines(live, answered)
        trees = [group.tree for group in answered]
        if self._options.mask_truncated_completions:
            trees = [
                tree.with_extras(learned=torch.tensor([float(ended) for ended in group.ended]))
                for tree, group in zip(trees, answered, strict=True)
            ]
        made = self._rewards.whole(list(zip(trees, found, fines, strict=True)))
        if not made and not may_be_none:
            raise self._rewards.no_reward(sum(tree.n_branches for tree in trees))
        return made

    @property
    def skips_failures(self) -> bool:
        """Whether an answer without a reward is left out instead of ending the run."""
        return self._options.on_reward_failure == "skip"

    def totals(self, live: Live, answered: list[AnswerGroup], found: list[dict[str, Tensor]]) -> list[Tensor]:
        """Of each group (B,) the rewards of its answers, by their `components`; nan where one has none."""
        fines = self._fines(live, answered)
        return [self._rewards.total(one) - fine for one, fine in zip(found, fines, strict=True)]

    def reference_rewards(self, live: Live, asks: Sequence[Ask]) -> list[float]:
        """What the data's own answers to these prompts are worth, nothing taken from it; the same on every rank."""
        return self._references.rewards(
            asks, lambda groups: [self._rewards.total(one) for one in self.components(live, groups)]
        )

    def _fines(self, live: Live, answered: list[AnswerGroup]) -> list[Tensor]:
        """Of each group (B,) what is taken from the rewards of its answers."""
        fine, bases = self._options.missing_eos_penalty, [0.0] * len(answered)
        if self._options.reward_baseline == "reference":
            bases = self.reference_rewards(live, [group.ask for group in answered])
        return [
            torch.tensor([base if ended else base + fine for ended in group.ended])
            for group, base in zip(answered, bases, strict=True)
        ]

    def measured(
        self, live: Live, trees: list[Tree], want: Want, names: Callable[[Outputs], dict[str, Tensor]]
    ) -> list[Tree]:
        """Trees with what the policy (`names` of its outputs) and the reference (``ref_logprobs``) say."""

        def run(batch: Batch) -> dict[str, Tensor]:
            extras = names(live.run(batch, want))
            return {**extras, "ref_logprobs": self._by_reference(live, batch)}

        rows = self._setup.rows(self._policy, *self._beside, records=self._options.experience_batch_size)
        with resident(self._reference):
            return measure(trees, rows, run)

    def trusted(self, trees: list[Tree]) -> list[Tree]:
        """Measured trees of a rollout; where a server has sampled them, with the importance of each token."""
        return trees if self._served is None else self._served.trusted(trees)

    @torch.no_grad()
    def _by_reference(self, live: Live, batch: Batch) -> Tensor:
        want = Want(temperature=self.temperature)
        if self._start is None:
            assert self._reference is not None
            with live.accelerator.autocast():
                outputs: Outputs = self._reference(batch, want)
        else:  # through the prepared module: no other forward gathers weights that are cut
            with self._start():
                outputs = live.run(batch, want)
        assert outputs.logprobs is not None
        return outputs.logprobs.float()

    def held_out_answers(self, live: Live, samples: int) -> list[AnswerGroup]:
        """So many sampled answers to each held-out prompt by fixed seeds, then the likeliest one; all on every rank."""
        rank, world, count = self._setup.rank, self._setup.world, len(self.held_out)
        sampling = replace(self.sampling, likeliest=True)
        seeds = list(range(count))[rank::world]
        own = self._sample(live, self.held_out[rank::world], sampling, samples + 1, seeds)
        everything = gathered(own, world)
        starts = np.cumsum([0, *(len(range(count)[r::world]) for r in range(world))])
        return [everything[starts[i % world] + i // world] for i in range(count)]

    def seed(self, rollout: int) -> list[int]:
        """What the answers of a rollout follow from, beside the weights."""
        return rollout_seed(self._setup, rollout)


def policy_terms(setup: Setup, kl_coef: Callable[[], float]) -> PolicyTerms:
    """The run's terms of a policy's loss; `kl_coef` says the present price of KL."""
    return PolicyTerms(
        setup.option(PolicyOptions),
        kl_coef,
        setup.option(RolloutOptions).temperature,
        setup.option(EngineOptions).precision,
        exact_reference=setup.option(MemoryOptions).frozen_bits is None,
    )


def rollout_seed(setup: Setup, rollout: int) -> list[int]:
    """What the answers of a rollout, by its number, follow from, beside the weights."""
    return [setup.option(RunOptions).seed, 7, rollout]
