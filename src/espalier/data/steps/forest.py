"""Many trees that are made when they are asked for, so that a set may be larger than the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from espalier.data.store.stack import Choice, chunks
from espalier.trees.tree import Tree

Sizes = npt.NDArray[np.int32]


class Forest(Sequence[Tree]):
    """Trees by number; what is asked for twice is made twice.

    Args:
        make: the tree of a number.
        sizes: their tokens, once with what is shared counted once (False), once every path for itself (True).
        count: how many there are.
    """

    def __init__(self, make: Callable[[int], Tree], sizes: Callable[[bool], Sizes], count: int) -> None:
        self._make, self._sizes, self._count = make, sizes, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Tree: ...
    @overload
    def __getitem__(self, at: slice) -> list[Tree]: ...
    def __getitem__(self, at: int | slice) -> Tree | list[Tree]:
        if isinstance(at, slice):
            return [self._make(place) for place in range(*at.indices(self._count))]
        if not -self._count <= at < self._count:
            raise IndexError(at)
        return self._make(at % self._count)

    def __iter__(self) -> Iterator[Tree]:
        return (self._make(place) for place in range(self._count))

    def sizes(self, *, paths: bool) -> Sizes:
        """(n,) tokens of each tree; `paths`: were each branch a sequence of its own."""
        return self._sizes(paths)

    def mapped(self, change: Callable[[Tree], Tree]) -> Forest:
        """The same trees, each changed when it is made; a change keeps the tokens."""
        return self.numbered(lambda at, tree: change(tree))

    def numbered(self, change: Callable[[int, Tree], Tree]) -> Forest:
        """`mapped` with the number of each tree."""
        return Forest(lambda at: change(at, self._make(at)), self._sizes, self._count)


def stored(choice: Choice) -> Forest:
    """The trees of chosen records."""
    stack, picks = choice.stack, choice.trees()
    count = stack.trees if picks is None else len(picks)

    def sizes(paths: bool) -> Sizes:
        read: Callable[[Any], Any] = stack.sizes
        if paths:
            read = lambda numbers: stack.of_trees("path_tokens", numbers)  # noqa: E731
        counts, at = np.empty(count, np.int32), 0
        for piece in chunks(picks, count):
            counts[at : at + len(piece)] = read(piece)
            at += len(piece)
        return counts

    return Forest(lambda at: stack.tree(at if picks is None else int(picks[at])), sizes, count)


def listed(trees: Sequence[Tree]) -> Forest:
    """Trees that are held already, as a forest."""
    if isinstance(trees, Forest):
        return trees

    def sizes(paths: bool) -> Sizes:
        return np.array([tree.n_path_tokens if paths else tree.n_tokens for tree in trees], np.int32)

    return Forest(lambda at: trees[at], sizes, len(trees))
