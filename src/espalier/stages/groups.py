"""The groups of answers that GRPO learns from: those that teach nothing are replaced, long answers are fined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import torch

from espalier.config.option_set import OptionSet
from espalier.config.options import Options, option
from espalier.config.train_options import in_steps
from espalier.errors import UserError
from espalier.maths.advantages import overlong_penalty
from espalier.rollout.experience import AnswerGroup, trained_mask
from espalier.stages.parts import Live
from espalier.stages.rollout_options import RolloutOptions
from espalier.stages.rollouts import Roller
from espalier.trees import Tree


@dataclass(frozen=True, kw_only=True)
class GroupOptions(Options):
    """Which groups of answers are learned from, and what long ones cost (DAPO, Yu et al. 2025)."""

    dynamic_sampling: int = option(
        0,
        "Groups whose answers are all equally good are replaced by other prompts, in at most so many rounds (DAPO).",
        min=0,
    )
    overlong_buffer: int | float = option(
        0,
        "The last so many tokens of max_new_tokens (below 1: a share) cost up to overlong_penalty (DAPO); 0: none.",
        min=0,
    )
    overlong_penalty: float = option(
        1.0, "Taken from the reward of an answer of max_new_tokens, where there is an overlong_buffer.", min=0
    )


def check_groups(options: OptionSet) -> None:
    """Refuse a buffer that fines every answer.

    Raises:
        UserError: it is longer than the longest answer.
    """
    rolling, own = options[RolloutOptions], options[GroupOptions]
    if own.overlong_buffer > rolling.max_new_tokens:
        raise UserError(
            f"overlong_buffer {own.overlong_buffer} is more than max_new_tokens {rolling.max_new_tokens}: every answer "
            "would lose some of its reward. Give a share such as 0.2."
        )


def with_spread(
    first: list[Tree], sample: Callable[[int, int], list[Tree]], rounds: int
) -> tuple[list[Tree], int]:
    """A rollout whose groups of equal scores are replaced, as far as `rounds` further samplings go (DAPO, section 3.2).

    Args:
        first: scored groups.
        sample: (how many, number of the round from 1 on) -> so many scored groups of other prompts.
        rounds: at most so many.

    Returns:
        As many groups, those in whose place none was found among them; and how many were sampled in all.
    """
    groups, sampled = list(first), len(first)
    for number in range(1, rounds + 1):
        equal = [at for at, tree in enumerate(groups) if not _has_spread(tree)]
        if not equal:
            break
        fresh = sample(len(equal), number)
        sampled += len(fresh)
        for at, tree in zip(equal, filter(_has_spread, fresh), strict=False):
            groups[at] = tree
    return groups, sampled


def _has_spread(tree: Tree) -> bool:
    scores = tree.extras["scores"]
    return bool((scores != scores[0]).any())


@dataclass(frozen=True)
class Groups:
    """The scored groups of a rollout: sampled, replaced where they teach nothing, fined where they are long."""

    roller: Roller
    options: GroupOptions
    longest: int

    def roll(self, live: Live, places: list[int], number: int) -> list[Tree]:
        roller, rounds, seed = self.roller, self.options.dynamic_sampling, self.roller.seed(number)
        trees = roller.scored(live, roller.answered(live, places, seed))
        if rounds:
            others = np.setdiff1d(np.arange(len(roller.asks)), places)
            pool = np.random.default_rng([*seed, 1]).permutation(others if len(others) else np.array(places))
            drawn = cycle(pool.tolist())

            def again(count: int, number: int) -> list[Tree]:
                chosen = list(islice(drawn, count))
                return roller.scored(live, roller.answered(live, chosen, [*seed, number]), may_be_none=True)

            trees, sampled = with_spread(trees, again, rounds)
            each = sampled / len(trees)
            trees = [tree.with_extras(sampled=torch.full((tree.n_branches,), each)) for tree in trees]
        return self._fine(trees)

    def scored(self, live: Live, answered: list[AnswerGroup]) -> list[Tree]:
        """These groups alone, with their fines."""
        return self._fine(self.roller.scored(live, answered))

    @property
    def unlike(self) -> str:
        """What `roll` does beyond `scored`; "" where it is nothing."""
        return "dynamic_sampling replaces groups and samples again" if self.options.dynamic_sampling else ""

    def _fine(self, trees: list[Tree]) -> list[Tree]:
        return [self._fined(tree) for tree in trees] if self.options.overlong_buffer else trees

    def _fined(self, tree: Tree) -> Tree:
        buffer = in_steps(self.options.overlong_buffer, self.longest)
        fine = overlong_penalty(trained_mask(tree).sum(1), self.longest, buffer)
        return tree.with_extras(scores=tree.extras["scores"] - self.options.overlong_penalty * fine)
