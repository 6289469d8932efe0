"""The prompts of a choice as what is sampled from, each read from disk when it is asked for."""

from __future__ import annotations

import json

import numpy as np

from espalier.data.store.stack import Choice, Lazy
from espalier.rollout.asked import Ask


class Asks(Lazy[Ask]):
    """Prompts by number.

    Args:
        choice: records of the kind "prompt"; those that were too long have no tokens, and are none.
    """

    def __init__(self, choice: Choice) -> None:
        stack, picks = choice.stack, choice.trees()

        def make(place: int) -> Ask:
            number = place if picks is None else int(picks[place])
            text, reference, turns, columns, prefix = stack.note(number)
            further = json.loads(columns) if columns else {}
            source = stack.source_of_tree(number)
            return Ask(stack.tokens(number), text, reference, source, turns, further, prefix)

        super().__init__(make, stack.trees if picks is None else len(picks))
        self._stack, self._picks = stack, picks

    @property
    def longest(self) -> int:
        """The most tokens of a prompt; 0 where there is none."""
        picks = np.arange(self._stack.trees) if self._picks is None else self._picks
        return int(self._stack.sizes(picks).max(initial=0))
