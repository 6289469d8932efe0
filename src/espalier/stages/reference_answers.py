"""What the rewards say of the data's own answers to the prompts: a baseline, and the scale of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from espalier.errors import UserError
from espalier.rollout.asked import Ask
from espalier.rollout.experience import AnswerGroup
from espalier.stages.setup import Setup
from espalier.trees import Tree

Score = Callable[[list[AnswerGroup]], list[Tensor]]
"""Groups of answers, the same on every rank, to the rewards (B,) of each."""


class ReferenceAnswers:
    """The rewards of prompts' reference answers, each asked for once.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._known: dict[tuple[tuple[int, ...], str], float] = {}

    def rewards(self, asks: Sequence[Ask], score: Score) -> list[float]:
        """A number for each prompt, nan where its reward has failed; the same on every rank."""
        new = {_key(ask): ask for ask in asks if _key(ask) not in self._known}
        if new:
            found = score([self._group(ask) for ask in new.values()])
            self._known |= {key: float(rewards[0]) for key, rewards in zip(new, found, strict=True)}
        return [self._known[_key(ask)] for ask in asks]

    def _group(self, ask: Ask) -> AnswerGroup:
        """The reference as an answer that has ended by itself."""
        text = str(ask.reference).removeprefix(ask.prefix)
        ids = [*self._setup.tokenizer.encode(text, add_special_tokens=False), *self._setup.stop[:1]]
        trained = [False] * len(ask.tokens) + [True] * len(ids)
        tree = Tree.from_path([*ask.tokens, *ids], trained, source=ask.source)
        return AnswerGroup(ask, tree, [text], [True])


def check_references(asks: Iterable[Ask], option: str) -> None:
    """Every prompt has a reference answer.

    Raises:
        UserError: one has none, with its place.
    """
    for ask in asks:
        if ask.reference is None:
            raise UserError(
                f"{ask.source}: {option} scores the reference answer of each prompt, and this one has none: add a "
                "`reference` column, or remove the option."
            )


def _key(ask: Ask) -> tuple[tuple[int, ...], str]:
    return tuple(ask.tokens), str(ask.reference)
