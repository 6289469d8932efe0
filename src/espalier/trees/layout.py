"""Two constructors of a Batch from the same trees: everything shared once in one row, or a row a branch.

`lay_out_tree` is what Espalier is for. `lay_out_padded` serves models that cannot take a tree and is the
truth that the tree layout is tested against. The grids (B, A) of both are equal cell by cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from espalier.trees.batch import Batch
from espalier.trees.tree import Tree

Layout = Callable[[Sequence[Tree]], Batch]


def lay_out_tree(trees: Sequence[Tree]) -> Batch:
    """All trees depth-first, one after the other, in one row (R = 1) without padding."""
    size = sum(tree.n_tokens for tree in trees)
    ids = np.empty(size, np.int64)
    positions = np.empty(size, np.int64)
    ends = np.empty(size, np.int64)
    reads = _Reads()
    place, first_branch = 0, 0
    for tree in trees:
        leaves: dict[int, int] = {}
        # (node, depth, flat place of the last token above it, trained tokens above it)
        stack: list[tuple[Tree, int, int, int]] = [(tree, 0, -1, 0)]
        while stack:
            node, depth, parent, column = stack.pop()
            n = len(node.tokens)
            here = slice(place, place + n)
            ids[here] = node.tokens
            positions[here] = np.arange(depth, depth + n)
            ends[here] = place + node.n_tokens
            if node.trained.any():
                assert len(node.ends) == 1 and not node.children, "a trained token has exactly one branch"
                reads.add(node, place, parent, first_branch + node.ends[0], column)
            last = place + n - 1 if n else parent
            leaves.update((branch, last) for branch in node.ends)
            place += n
            column += int(node.trained.sum())
            stack.extend((child, depth + n, last, column) for child in reversed(node.children))
        reads.close(leaves)
        first_branch += len(leaves)
    return reads.batch(ids[None], positions[None], ends[None], None, trees)


def lay_out_padded(trees: Sequence[Tree]) -> Batch:
    """Each branch its own right-padded row (R = B), with a plain (R, T) attention mask."""
    paths = [(i, path) for i, tree in enumerate(trees) for path in tree.paths()]
    rows, width = len(paths), max(len(tokens) for _, (tokens, _) in paths)
    ids = np.zeros((rows, width), np.int64)
    positions = np.zeros((rows, width), np.int64)
    ends = np.tile(np.arange(1, width + 1), (rows, 1))  # a padding token is seen by itself alone
    mask = np.zeros((rows, width), bool)
    reads = _Reads()
    for row, (tree, (tokens, trained)) in enumerate(paths):
        n = len(tokens)
        ids[row, :n], positions[row, :n], ends[row, :n], mask[row, :n] = tokens, np.arange(n), n, True
        reads.add(Tree(tokens, trained), row * width, -1, row, 0)
        reads.leaf_at.append(row * width + n - 1)
        reads.tree_id.append(tree)
    return reads.batch(ids, positions, ends, mask, trees)


def unrolled(batch: Batch) -> Batch:
    """The same trees in the padded layout: what `lay_out_padded` would have made of them, from a tree batch alone.

    For a model that takes no trees beside one that does. A padded batch is handed back as it is.
    """
    if batch.attention_mask is not None:
        return batch
    ends, device = batch.subtree_end[0], batch.input_ids.device
    places = torch.arange(len(ends), device=device)
    # (B, T): the tokens on the way to each leaf are those whose subtree it stands in.
    on_path = (places <= batch.leaf_at[:, None]) & (batch.leaf_at[:, None] < ends)
    lengths = on_path.sum(1)
    width = int(lengths.max())
    position = batch.position_ids[0]
    rows, at = on_path.nonzero(as_tuple=True)
    ids = torch.zeros(len(lengths), width, dtype=torch.int64, device=device)
    ids[rows, position[at]] = batch.input_ids[0, at]
    steps = torch.arange(width, device=device)
    mask = steps < lengths[:, None]
    return replace(
        batch,
        input_ids=ids,
        position_ids=steps * mask,
        subtree_end=torch.where(mask, lengths[:, None], steps + 1),
        attention_mask=mask,
        read_at=batch.branch * width + position[batch.read_at],
        leaf_at=torch.arange(len(lengths), device=device) * width + lengths - 1,
        tokens_in_rows=batch.tokens_in_paths,
    )


class _Reads:
    """Collects where each trained token is read and which cell of the grid it fills."""

    def __init__(self) -> None:
        self.read_at: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.branch: list[np.ndarray] = []
        self.column: list[np.ndarray] = []
        self.leaf_at: list[int] = []
        self.tree_id: list[int] = []

    def add(self, node: Tree, place: int, parent: int, branch: int, column: int) -> None:
        """The trained tokens of a node that begins at flat `place`, below the token at flat `parent`."""
        (at,) = np.nonzero(node.trained)
        parents = place + at - 1
        if len(at) and at[0] == 0:
            assert parent >= 0, "a token without a parent is never trained"
            parents[0] = parent
        self.read_at.append(parents)
        self.labels.append(node.tokens[at])
        self.branch.append(np.full(len(at), branch))
        self.column.append(np.arange(column, column + len(at)))

    def close(self, leaves: dict[int, int]) -> None:
        """A tree is finished: the flat places of its leaves, by branch."""
        tree = self.tree_id[-1] + 1 if self.tree_id else 0
        self.leaf_at += [leaves[i] for i in range(len(leaves))]
        self.tree_id += [tree] * len(leaves)

    def batch(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        ends: np.ndarray,
        mask: np.ndarray | None,
        trees: Sequence[Tree],
    ) -> Batch:
        branch, column = _joined(self.branch), _joined(self.column)
        # Grid order, so that both layouts give the very same tensors to the losses.
        order = np.lexsort((column, branch))
        shape = (len(self.leaf_at), int(column.max()) + 1 if len(column) else 0)
        return Batch(
            input_ids=torch.from_numpy(ids),
            position_ids=torch.from_numpy(positions),
            subtree_end=torch.from_numpy(ends),
            attention_mask=None if mask is None else torch.from_numpy(mask),
            read_at=torch.from_numpy(_joined(self.read_at)[order]),
            labels=torch.from_numpy(_joined(self.labels)[order]),
            branch=torch.from_numpy(branch[order]),
            column=torch.from_numpy(column[order]),
            leaf_at=torch.tensor(self.leaf_at, dtype=torch.int64),
            tree_id=torch.tensor(self.tree_id, dtype=torch.int64),
            shape=shape,
            extras=_join_extras(trees, shape[1]),
            tokens_in_paths=sum(tree.n_path_tokens for tree in trees),
            tokens_in_rows=ids.size if mask is None else int(mask.sum()),
        )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def _join_extras(trees: Sequence[Tree], width: int) -> dict[str, Tensor]:
    """Stack the trees' (B,) extras and pad their (B, A) extras with zeros to the width of the grid."""
    names = trees[0].extras.keys() if trees else []
    for tree in trees:
        assert tree.extras.keys() == names, f"{tree.source}: extras differ within one batch"
    joined = {}
    for name in names:
        parts = [tree.extras[name] for tree in trees]
        if parts[0].dim() == 2:
            parts = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
        joined[name] = torch.cat(parts)
    return joined
