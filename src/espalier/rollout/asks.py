"""The prompts of a choice as what is sampled from, each read from disk when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from espalier.data.store.stack import Choice
from espalier.rollout.experience import Ask


class Asks(Sequence[Ask]):
    """Prompts by number.

    Args:
        choice: records of the kind "prompt"; those that were too long have no tokens, and are none.
    """

    def __init__(self, choice: Choice) -> None:
        self._stack, self._picks = choice.stack, choice.trees()

    def __len__(self) -> int:
        return self._stack.trees if self._picks is None else len(self._picks)

    @overload
    def __getitem__(self, at: int) -> Ask: ...
    @overload
    def __getitem__(self, at: slice) -> list[Ask]: ...
    def __getitem__(self, at: int | slice) -> Ask | list[Ask]:
        if isinstance(at, slice):
            return [self[place] for place in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        place = at % len(self)
        number = place if self._picks is None else int(self._picks[place])
        text, reference = self._stack.note(number)
        return Ask(self._stack.tokens(number), text, reference, self._stack.source_of_tree(number))
