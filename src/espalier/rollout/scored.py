"""The answers of a rollout with the numbers of a list of rewards: each alone, and their weighted sum.

B answers to a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor

from espalier.errors import Stopped, UserError
from espalier.rollout.asked import Ask
from espalier.rollout.ensemble import Ensemble
from espalier.rollout.experience import AnswerGroup
from espalier.rollout.rewards.function import OwnFunction
from espalier.rollout.rewards.scorer import AnswerScorer, Failure, Means, Show, silent
from espalier.rollout.rewards.table import KINDS, MODEL, RewardSpec
from espalier.trees import Tree

OnFailure = Literal["stop", "skip"]

COMPONENT = "reward/"
"""What the names of components begin with in the logs and among a tree's extras."""

FAILURES = "reward_failures"


@dataclass
class _Found:
    """Of one group: name -> (B,) numbers, nan where there is none; and what is said of the first failure."""

    components: dict[str, list[float]]
    failure: str | None = None


class RewardList:
    """A list of rewards, its scorers built and looked at; the models among them are somebody else's to load.

    Args:
        specs: in their order.
        on_failure: whether an answer without a number stops the run or is left out.
        means: of the run.
        ensemble: how the models among them become one; None: each counts by itself.

    Raises:
        UserError: a file, a function or a library that a reward needs is not there.
    """

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        on_failure: OnFailure,
        means: Means,
        ensemble: Ensemble | None = None,
    ) -> None:
        self.specs, self._skips, self._means = tuple(specs), on_failure == "skip", means
        self.ensemble = ensemble or Ensemble()
        self._weights = {spec.name: spec.weight for spec in self.specs}
        self._scorers: dict[str, AnswerScorer] = {}
        for spec in self.specs:
            build = KINDS[spec.kind].build
            if build is not None:
                self._scorers[spec.name] = build(spec.settings, means)
        self._told = ""

    @property
    def models(self) -> tuple[RewardSpec, ...]:
        """Those that are trained models."""
        return tuple(spec for spec in self.specs if spec.kind == MODEL)

    def check(self, asks: Iterable[Ask]) -> None:
        """Every prompt has what the rewards need of its record.

        Raises:
            UserError: one has not, with its place.
        """
        needed = [(spec, column) for spec in self.specs for column in self._needs(spec)]
        for ask in asks if needed else ():
            for spec, column in needed:
                if column == "reference" and ask.reference is None:
                    raise UserError(
                        f"{ask.source}: the reward {spec.title} compares with a reference, and the prompt has none: add a "
                        "`reference` column."
                    )
                if column != "reference" and column not in ask.columns:
                    has = ", ".join(ask.columns) or "none beside the conversation"
                    raise UserError(
                        f"{ask.source}: the reward {spec.title} wants the column {column!r}, and this record has {has}. "
                        "Add it, or name another."
                    )

    def _needs(self, spec: RewardSpec) -> list[str]:
        scorer = self._scorers.get(spec.name)
        wants = scorer.wants if isinstance(scorer, OwnFunction) else ()
        return [column for column in (KINDS[spec.kind].needs(spec.settings), *wants) if column]

    def by_rules(
        self, answered: Sequence[AnswerGroup], rank: int, world: int, show: Show = silent
    ) -> list[dict[str, Tensor]]:
        """Of each group: name -> (B,) of the rewards that need no model, nan where one gave no number.

        Every answer is scored once, by one rank, and every rank gets all.

        Args:
            answered: the same on every rank.
            show: told what is waited for, where a reward is slow.

        Raises:
            UserError, Stopped: on all ranks alike, where a reward failed on one of them and that stops the run.
        """
        if not self._scorers:
            return [{} for _ in answered]
        own: list[tuple[int, _Found]] = []
        problems: list[UserError | Stopped] = []
        try:
            for i in range(rank, len(answered), world):
                own.append((i, self._found(answered[i], show)))
        except (UserError, Stopped) as met:
            problems.append(met)
        if world > 1:
            own, problems = gather_object(own), gather_object(problems)
        for problem in sorted(problems, key=lambda p: isinstance(p, Stopped)):
            raise problem
        found = dict(own)
        self._tell([found[i].failure for i in range(len(answered))])
        return [
            {name: torch.tensor(scores) for name, scores in found[i].components.items()}
            for i in range(len(answered))
        ]

    def _found(self, group: AnswerGroup, show: Show) -> _Found:
        found = _Found({})
        for spec in self.specs:
            if spec.name not in self._scorers:
                continue
            scores = []
            results = self._scorers[spec.name](group.ask, group.texts, show)
            for answer, result in zip(group.texts, results, strict=True):
                if isinstance(result, Failure):
                    text = _said(spec, result, group.ask, answer)
                    if not self._skips:
                        raise UserError(f"{text} on_reward_failure: skip leaves such answers out.")
                    found.failure = found.failure or text
                scores.append(math.nan if isinstance(result, Failure) else float(result))
            found.components[spec.name] = scores
        return found

    def _tell(self, failures: Sequence[str | None]) -> None:
        """The first failure of a run, in full; the others are counted."""
        first = next((failure for failure in failures if failure), None)
        if first is not None and not self._told:
            self._told = first
            self._means.say(
                f"{first} This answer is left out, and so are others like it: {FAILURES} counts them."
            )

    def total(self, components: dict[str, Tensor]) -> Tensor:
        """(B,) the weighted sum of a group's components; nan where one is."""
        return self.ensemble.total(components, self._weights)

    def whole(self, groups: Sequence[tuple[Tree, dict[str, Tensor], Tensor]]) -> list[Tree]:
        """The trees of a rollout with the answers that have all their numbers.

        Extras (B,): ``scores``, the weighted sum less the fines; ``reward/NAME`` of each reward, and of an ensemble
        ``reward/ensemble_spread``, the standard deviation of its models; where failures are
        skipped ``reward_failures``, how many answers of the rollout were left out (the same for each).

        Args:
            groups: tree, its components, and (B,) what is taken from its answers' rewards.

        Returns:
            In their order; a tree without such an answer is not among them.
        """
        made, lost = [], 0
        for tree, components, fines in groups:
            total = self.total(components)
            parts = {spec.name: components[spec.name] for spec in self.specs}
            parts |= self.ensemble.extras(components)
            extras = {f"{COMPONENT}{name}": numbers for name, numbers in parts.items()}
            kept = ~torch.isnan(total)
            lost += int((~kept).sum())
            if bool(kept.any()):
                made.append(_kept(tree.with_extras(scores=total - fines, **extras), kept))
        if not self._skips:
            return made
        return [tree.with_extras(**{FAILURES: torch.full((tree.n_branches,), float(lost))}) for tree in made]

    def no_reward(self, answers: int) -> UserError:
        """What is said where a rollout has nothing to learn from."""
        return UserError(
            f"none of the {answers} answers of this rollout has a reward: {self._told or 'see above'} The last checkpoint "
            "is kept; run the same command again when the reward works."
        )


def _kept(tree: Tree, kept: Tensor) -> Tree:
    """A tree without some of its branches; extras are (B,) or (B, A)."""
    if bool(kept.all()):
        return tree
    paths = [path for path, stays in zip(tree.paths(), kept.tolist(), strict=True) if stays]
    longest = max(int(trained.sum()) for _, trained in paths)
    extras = {name: v[kept, :longest] if v.dim() == 2 else v[kept] for name, v in tree.extras.items()}
    return Tree.join(paths, source=tree.source, extras=extras)  # type: ignore[arg-type]


def _said(spec: RewardSpec, failure: Failure, ask: Ask, answer: str) -> str:
    where = f" ({ask.source})" if ask.source else ""
    more = f" {failure.more}" if failure.more else ""
    cure = f" {failure.cure}; the last checkpoint is kept." if failure.cure else ""
    return (
        f"reward {spec.title} {failure.what} for the answer {answer[:80]!r}{more} to the prompt "
        f"{ask.text[:80]!r}{where}.{cure}"
    )


def component_sums(extras: dict[str, Tensor], kept: Tensor) -> dict[str, tuple[Any, Any]]:
    """The (sum, weight) of each component, to be logged.

    Args:
        extras: of a batch, (B,) each.
        kept: (B,) which branches are answers.
    """
    names = [name for name in extras if name.startswith(COMPONENT) or name == FAILURES]
    return {name: ((extras[name] * kept).sum(), kept.sum()) for name in names}


def tree_sums(trees: Sequence[Tree]) -> dict[str, tuple[Any, Any]]:
    """`component_sums` of whole trees."""
    names = trees[0].extras if trees else {}
    joined = {name: torch.cat([tree.extras[name] for tree in trees]) for name in names}
    return component_sums(joined, torch.ones(sum(tree.n_branches for tree in trees)))
