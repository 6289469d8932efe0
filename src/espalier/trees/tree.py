"""The tree: a prompt and the continuations that share it, before it is laid out in a row.

A tree is built from whole token sequences (its branches) by their common prefixes. Nothing here knows
where the tokens come from, how they are laid out, or what is learned from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

Path = tuple[Sequence[int], Sequence[bool]]
"""One whole branch from the root to its leaf: its tokens, and which of them are trained (or scored)."""


BLANK = "blank"
"""Name of the extra (1, A) of a text with filled blanks: the place on the path of the blank that each trained token
fills, which takes the place of a distance from the root for the token that it is read at."""


@dataclass(frozen=True)
class Tree:
    """A node with the tokens it holds, and the subtrees below it; the root stands for the whole tree.

    Branches are numbered by the order in which they were given, whatever the order of the leaves in the
    row: in a preference tree branch 0 is the chosen answer and branch 1 the rejected one.

    Example: the prompt ``7 8`` with the answers ``1 2`` and ``1 3`` of which every token is trained is
    ``Tree([7, 8], children=(Tree([1, 2], ends=(0,)), Tree([1, 3], ends=(1,))))``: the equal first
    answer tokens are kept apart, because a trained token belongs to exactly one branch.

    Attributes:
        tokens: (n,) int64, the node's own tokens; only the root may hold none.
        trained: (n,) bool, which of them are trained (or, in an exam, scored).
        children: the subtrees that continue after the last token.
        ends: the branches whose last token is this node's last token.
        source: where the tree comes from, such as ``"train.jsonl:12"``; kept at the root.
        extras: named float tensors of the whole tree, (B,) a branch or (B, A) a trained token of a
            branch; kept at the root.
    """

    tokens: np.ndarray
    trained: np.ndarray
    children: tuple[Tree, ...] = ()
    ends: tuple[int, ...] = ()
    source: str = ""
    extras: dict[str, torch.Tensor] = field(default_factory=dict)

    @staticmethod
    def from_path(
        tokens: Sequence[int],
        trained: Sequence[bool],
        *,
        source: str = "",
        extras: dict[str, torch.Tensor] | None = None,
    ) -> Tree:
        """A tree of one branch."""
        return Tree.join([(tokens, trained)], source=source, extras=extras)

    @staticmethod
    def join(
        paths: Sequence[Path], *, source: str = "", extras: dict[str, torch.Tensor] | None = None
    ) -> Tree:
        """Share the common prefixes of whole branches; ``paths[i]`` becomes branch i.

        Sharing stops before the first trained token of any branch, so that no trained token is counted
        twice.

        Raises:
            ValueError: no branch, an empty branch, flags of another length than the tokens, or a trained
                first token (it has no parent at which its logprob could be read).
        """
        if not paths:
            raise ValueError(f"{source or 'a tree'} has no branch")
        items = [_Item(i, *_as_arrays(path, source, i)) for i, path in enumerate(paths)]
        root = _grow(items, 0)
        return Tree(root.tokens, root.trained, root.children, root.ends, source, dict(extras or {}))

    def with_extras(self, **extras: torch.Tensor) -> Tree:
        """The same tree with further extras, (B,) or (B, A); of equal names the new one stays."""
        return replace(self, extras={**self.extras, **extras})

    def nodes(self) -> Iterator[tuple[Tree, int]]:
        """All nodes depth-first with their depth, the number of tokens above them."""
        stack: list[tuple[Tree, int]] = [(self, 0)]
        while stack:
            node, depth = stack.pop()
            yield node, depth
            stack.extend((child, depth + len(node.tokens)) for child in reversed(node.children))

    def paths(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The whole branches, in the order of their numbers: (tokens, trained) of each."""
        branches: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        stack: list[tuple[Tree, list[Tree]]] = [(self, [])]
        while stack:
            node, above = stack.pop()
            line = [*above, node]
            for branch in node.ends:
                tokens = np.concatenate([n.tokens for n in line])
                branches[branch] = (tokens, np.concatenate([n.trained for n in line]))
            stack.extend((child, line) for child in node.children)
        return [branches[i] for i in range(len(branches))]

    @property
    def n_branches(self) -> int:
        return sum(len(node.ends) for node, _ in self.nodes())

    @property
    def n_tokens(self) -> int:
        """Tokens to compute when what is shared is laid out once."""
        return sum(len(node.tokens) for node, _ in self.nodes())

    @property
    def n_path_tokens(self) -> int:
        """Tokens to compute when every branch is a sequence of its own."""
        return sum((depth + len(node.tokens)) * len(node.ends) for node, depth in self.nodes())

    @property
    def n_trained(self) -> int:
        return sum(int(node.trained.sum()) for node, _ in self.nodes())

    @property
    def longest_path(self) -> int:
        return max(depth + len(node.tokens) for node, depth in self.nodes())


@dataclass(frozen=True)
class _Item:
    branch: int
    tokens: np.ndarray
    trained: np.ndarray

    @property
    def shareable(self) -> int:
        """Tokens before the first trained one."""
        return int(self.trained.argmax()) if self.trained.any() else len(self.tokens)


def _as_arrays(path: Path, source: str, branch: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.asarray(path[0], dtype=np.int64)
    trained = np.asarray(path[1], dtype=bool)
    where = f"{source or 'tree'}, branch {branch}"
    if len(tokens) == 0:
        raise ValueError(f"{where}: no tokens")
    if tokens.shape != trained.shape:
        raise ValueError(f"{where}: {len(tokens)} tokens but {len(trained)} trained flags")
    if trained[0]:
        raise ValueError(f"{where}: the first token is trained, but it has no parent that could predict it")
    return tokens, trained


def _grow(items: list[_Item], start: int) -> Tree:
    """The node that begins at depth `start` of these branches, which agree in all tokens before it."""
    first = items[0]
    if len(items) == 1:
        return Tree(first.tokens[start:], first.trained[start:], ends=(first.branch,))
    stop = min(item.shareable for item in items)
    for item in items[1:]:
        stop = min(stop, start + agreement(first.tokens[start:stop], item.tokens[start:stop]))
    ends = tuple(item.branch for item in items if len(item.tokens) == stop)
    groups: dict[tuple[int, int], list[_Item]] = {}
    for item in items:
        if len(item.tokens) == stop:
            continue
        alone = item.branch if item.shareable == stop else -1
        groups.setdefault((int(item.tokens[stop]), alone), []).append(item)
    children = tuple(_grow(group, stop) for group in groups.values())
    return Tree(first.tokens[start:stop], first.trained[start:stop], children, ends)


def agreement(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> int:
    """Length of the common prefix of two runs of tokens.

    >>> agreement([7, 8, 1, 2], [7, 8, 1]), agreement([7], [8]), agreement([], [8])
    (3, 0, 0)
    """
    n = min(len(a), len(b))
    differs = np.asarray(a[:n]) != np.asarray(b[:n])
    return int(differs.argmax()) if differs.any() else n
