"""The policy of PPO and GRPO judged on held-out prompts: its reward, and what the reward does not see.

Each evaluation samples several answers to each held-out prompt as the run does, by fixed seeds, and takes the likeliest one
too. Both are scored by the reward and by a **yardstick**, a rule that nothing is optimised for. The sampled answers are then
measured once by the policy and once by the reference. `espalier.stages.watch` says in words what the numbers give away.

P prompts, S sampled answers to each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from espalier.config.options import Options, option
from espalier.engine.track import Numbers
from espalier.errors import UserError
from espalier.maths.ratio import ratio
from espalier.maths.samples import best_of, explained_variance, same_pairs, within_correlation
from espalier.models.forward import Want
from espalier.rollout.asks import Asks
from espalier.rollout.experience import AnswerGroup, trained_mask
from espalier.rollout.rewards.table import MODEL, listed, read_specs
from espalier.rollout.scored import COMPONENT, FAILURES, RewardList
from espalier.stages.parts import Live, Units
from espalier.stages.rewarding import reward_list
from espalier.stages.rollout_options import RolloutOptions
from espalier.stages.rollouts import Roller
from espalier.stages.setup import Setup
from espalier.stages.watch import Named, Watch
from espalier.trees import Tree

MEASURED = 2
"""So many sampled answers to each prompt are measured by policy, reference and critic: that takes as long as sampling, and
the error of a mean over prompts hardly shrinks with more."""
NONE = "none"
EXACT = ("equals", "number", "mathematics")
"""Rules that are their own yardstick as rewards: the answer is right by the reference or it is not."""


@dataclass(frozen=True, kw_only=True)
class JudgedOptions(Options):
    """What evaluations measure of the answers to held-out prompts, beside the reward."""

    yardstick: str | list[str | dict[str, Any]] | None = option(
        None,
        "What held-out answers are judged by and that is no reward: a name as in reward_function, FILE.py:FUNCTION, or a "
        "list as `rewards` (a judge, tests, a pattern); none: none; null: equals, where every held-out prompt has a reference.",
        names="rewards",
    )
    eval_samples: int = option(
        4, "Answers sampled to each held-out prompt at an evaluation; the likeliest one comes on top.", min=1
    )
    kl_bound: float | None = option(
        10.0,
        "Warn where the policy is more nats an answer from the reference (where people's liking peaked in Stiennon et al. "
        "2020, figure 5); null: never.",
        above=0,
        same_result=True,
    )

    def problems(self) -> list[str]:
        if self.yardstick in (None, NONE):
            return []
        specs, problems = read_specs(listed(self.yardstick), "yardstick")
        if any(spec.kind == MODEL for spec in specs):
            problems.append(
                "`yardstick` has a reward model, and a yardstick is a rule or a judge. A second model that nothing is optimised "
                "for belongs in an exam: tasks: [reward:FILE]."
            )
        return problems


@dataclass(frozen=True)
class Yardstick:
    """A rule beside the reward.

    Attributes:
        name: of the rule; None where nothing is measured.
        rule: a list with the rule alone.
        own: whether it is the run's reward.
    """

    name: str | None
    rule: RewardList | None
    own: bool

    def __call__(self, setup: Setup, answered: Sequence[AnswerGroup]) -> list[Tensor]:
        """(S,) what the rule gives to the answers to each prompt; the same on every rank."""
        assert self.rule is not None
        try:
            found = self.rule.by_rules(answered, setup.rank, setup.world, setup.show)
        except UserError as error:
            text = str(error).removesuffix(" on_reward_failure: skip leaves such answers out.")
            raise UserError(text.replace("reward", "yardstick", 1)) from error
        return [self.rule.total(one) for one in found]


def find_yardstick(setup: Setup, held_out: Asks) -> Yardstick:
    """The yardstick of the options, or what is honest where they say nothing; before a model is loaded.

    Raises:
        UserError: it compares with references, and a held-out prompt has none.
    """
    asked, rolling = setup.option(JudgedOptions).yardstick, setup.option(RolloutOptions)
    rewards = rolling.specs
    bare = next((ask.source for ask in held_out if ask.reference is None), None)
    if not held_out:
        setup.say(
            "no held-out prompts: nothing shows whether the answers get better or the reward is fooled (eval_dataset, val_size)"
        )
    if not held_out or asked == NONE:
        return Yardstick(None, None, own=False)
    if asked is None:
        if bare is not None:
            setup.say(
                "no yardstick beside the reward: a held-out prompt has no reference. Where the reward is fooled, nothing shows "
                "it; name a `yardstick` (FILE.py:FUNCTION)"
            )
            return Yardstick(None, None, own=False)
        exact = len(rewards) == 1 and rewards[0].kind in EXACT
        asked = rewards[0].kind if exact else "equals"
    specs = read_specs(listed(asked), "yardstick")[0]
    name = " + ".join(asked if isinstance(asked, str) else spec.name for spec in specs)
    parts = [(spec.kind, spec.settings) for spec in specs]
    own = [(one.kind, one.settings) for one in rewards] == parts
    if own:
        setup.say(
            f"the reward is the rule {name}, which is its own yardstick: evaluations show no second one; `yardstick` names one"
        )
    elif any((one.kind, one.settings) in parts for one in rewards):
        setup.say(f"the yardstick {name} is a part of the reward, too")
    rule = reward_list(setup, rolling, specs)
    try:
        rule.check(held_out)
    except UserError as error:
        text = str(error).replace("the reward", "the yardstick", 1)
        raise UserError(f"{text} Or name another yardstick (none: none).") from error
    return Yardstick(name, rule, own)


@dataclass(frozen=True)
class Critic:
    """What PPO adds to an evaluation.

    Attributes:
        shaped: measured trees to the same with ``extras["returns"]`` (B, A): the rewards that really came, nothing
            foreseen (lambda 1).
        price: the present kl_coef.
        normalise: scores (N,) as they are paid at present.
        reward_clip: scores beyond it are cut; None: none.
    """

    shaped: Callable[[list[Tree]], list[Tree]]
    price: Callable[[], float]
    normalise: Callable[[Tensor], Tensor]
    reward_clip: float | None


class Judged:
    """Judges the policy at an evaluation, on all ranks together.

    Args:
        setup: of the run.
        roller: samples and scores.
        yardstick: see `find_yardstick`.
        critic: of PPO; None: there is none.

    Attributes:
        watch: is told what was found.
    """

    def __init__(
        self, setup: Setup, roller: Roller, yardstick: Yardstick, critic: Critic | None = None
    ) -> None:
        self._setup, self._roller, self._critic = setup, roller, critic
        options = setup.option(JudgedOptions)
        self._samples = options.eval_samples
        self._yardstick = yardstick
        self.watch = Watch(Named(yardstick.name, yardstick.own, options.kl_bound))

    def validate(self, live: Live) -> tuple[Units | None, Numbers]:
        """The reward of sampled answers, a number a prompt, and the other numbers; the first rank says them for all."""
        if not self._roller.held_out:
            return None, {}
        by_prompt, numbers = self._judged(live)
        if not by_prompt:
            return None, numbers if not self._setup.rank else dict.fromkeys(numbers, (0.0, 0.0))
        self.watch.note(
            {name: x.tolist() for name, x in by_prompt.items()},
            {name: float(total) / float(weight) for name, (total, weight) in numbers.items()},
        )
        for name, x in by_prompt.items():
            numbers[name] = (float(x.sum()), float(len(x)))
        for name in ("reward_greedy", "yardstick", "yardstick_greedy", "kl"):
            if len(by_prompt.get(name, ())) > 1:
                numbers[f"{name}_stderr"] = (
                    ratio(by_prompt[name], torch.ones_like(by_prompt[name])).stderr or 0.0,
                    1.0,
                )
        del numbers["reward"]
        # Every rank holds all units, and the wiring adds the ranks up: only the first one says them.
        if self._setup.rank:
            return None, dict.fromkeys(numbers, (0.0, 0.0))
        return (by_prompt["reward"], torch.ones_like(by_prompt["reward"])), numbers

    def _judged(self, live: Live) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
        """(P,) numbers by prompt, and those about all answers as (sum, weight)."""
        roller, setup = self._roller, self._setup
        answered = roller.held_out_answers(live, self._samples)
        found = roller.components(live, answered)
        both = torch.stack(roller.totals(live, answered, found))
        failed = torch.isnan(both)
        if bool(failed.any()):  # such a prompt cannot be compared with itself
            whole = (~failed.any(1)).tolist()
            answered, found = list(compress(answered, whole)), list(compress(found, whole))
            if not answered:
                return {}, {FAILURES: (float(failed.sum()), 1.0)}
            both = both[torch.tensor(whole)]
        scores, lengths = both[:, :-1], torch.stack([trained_mask(a.tree).sum(1).double() for a in answered])
        ended = torch.tensor([group.ended for group in answered], dtype=torch.float64)
        by_prompt = {
            "reward": scores.mean(1),
            "reward_greedy": both[:, -1],
            "answer_tokens": lengths[:, :-1].mean(1),
            "answer_tokens_greedy": lengths[:, -1],
            "ended": ended[:, :-1].mean(1),
            "ended_greedy": ended[:, -1],
        }
        sizes = [n for n in (2**i for i in range(1, 20)) if n <= self._samples]
        by_prompt |= {
            f"{COMPONENT}{name}": torch.stack([one[name][:-1].double().mean() for one in found])
            for name in found[0]
        }
        by_prompt |= {f"best_of_{n}": best_of(scores, scores, n) for n in sizes}
        if self._yardstick.rule is not None:
            values = torch.stack(self._yardstick(setup, answered))
            by_prompt |= {"yardstick": values[:, :-1].mean(1), "yardstick_greedy": values[:, -1]}
            by_prompt |= {f"yardstick_best_of_{n}": best_of(scores, values[:, :-1], n) for n in sizes}
            if self.watch.first is None and bool((values == values[0, 0]).all()):
                setup.say(
                    f"the yardstick {self._yardstick.name} gives {float(values[0, 0]):g} to all {values.numel()} held-out answers "
                    "so far, and can show no loss; `yardstick` names another"
                )
        if self._samples > 1:
            by_prompt["duplicates"] = torch.tensor([same_pairs(group.texts[:-1]) for group in answered])
        numbers: dict[str, tuple[float, float]] = {}
        if roller.skips_failures:
            numbers[FAILURES] = (float(failed.sum()), 1.0)
        correlation = within_correlation(scores, lengths[:, :-1])
        if correlation is not None:
            numbers["length_correlation"] = (correlation, 1.0)
        critic = self._critic
        if critic is not None and critic.reward_clip is not None:
            cut = critic.normalise(scores.flatten()).abs() > critic.reward_clip
            numbers["score_clipped"] = (float(cut.sum()), float(scores.numel()))
        count = min(MEASURED, self._samples)
        sampled = [_first(count, group, own) for group, own in zip(answered, scores, strict=True)]
        measured, told = self._measured(live, sampled)
        return by_prompt | measured, numbers | told

    def _measured(
        self, live: Live, trees: list[Tree]
    ) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
        """What policy, reference and critic say about sampled answers."""
        critic = self._critic
        want = Want(entropy=True, values=critic is not None, temperature=self._roller.temperature)
        said = {"old_logprobs": "logprobs", "entropy": "entropy"} | (
            {"old_values": "values"} if critic is not None else {}
        )
        trees = self._roller.measured(
            live, trees, want, lambda outputs: {name: getattr(outputs, of) for name, of in said.items()}
        )
        masks = [trained_mask(tree) for tree in trees]
        entropy = sum(
            float((tree.extras["entropy"] * mask).sum()) for tree, mask in zip(trees, masks, strict=True)
        )
        numbers = {"entropy": (entropy, float(sum(int(mask.sum()) for mask in masks)))}
        kl = [
            float(((t.extras["old_logprobs"] - t.extras["ref_logprobs"]) * mask).sum()) / len(mask)
            for t, mask in zip(trees, masks, strict=True)
        ]
        if critic is not None:
            numbers["kl_coef"] = (critic.price(), 1.0)
            values, returns = (
                torch.cat([t.extras[name][mask] for t, mask in zip(critic.shaped(trees), masks, strict=True)])
                for name in ("old_values", "returns")
            )
            foreseen = explained_variance(values, returns)
            if foreseen is not None:
                numbers["explained_variance"] = (foreseen, 1.0)
        return {"kl": torch.tensor(kl, dtype=torch.float64)}, numbers


def _first(count: int, group: AnswerGroup, scores: Tensor) -> Tree:
    """The first sampled answers to a prompt with their scores."""
    paths = [(ids.tolist(), trained.tolist()) for ids, trained in group.tree.paths()]
    return Tree.join(paths[:count], source=group.ask.source).with_extras(scores=scores[:count])
