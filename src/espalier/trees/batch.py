"""The Batch: trees laid out in rows, with where to read what is known about each trained token; and its constructors.

`lay_out_tree` is what Espalier is for: everything shared once in one row. `lay_out_padded`, a row a branch, serves
models that cannot take a tree and is the truth that the tree layout is tested against. The grids (B, A) of both are
equal cell by cell.

R rows, T tokens a row, N trained tokens, B branches, A trained tokens of the longest branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from espalier.trees.tree import Tree


@dataclass(frozen=True)
class Batch:
    """What a forward takes; losses and advantages see only the (B, A) and (B,) tensors that it leads to.

    Example (tree layout): the prompt ``7 8`` with the trained answers ``1 2`` and ``5``::

        input_ids    [[7, 8, 1, 2, 5]]      position_ids [[0, 1, 2, 3, 2]]
        subtree_end  [[5, 5, 4, 4, 5]]      token q sees token k when k <= q < subtree_end[k]
        read_at      [1, 2, 1]              labels [1, 2, 5]     the parents, and what they should say
        branch       [0, 0, 1]              column [0, 1, 0]     their cells of the (B, A) grid
        leaf_at      [3, 4]                 tree_id [0, 0]

    Attributes:
        input_ids: (R, T) int64.
        position_ids: (R, T) int64, the distance from the root.
        subtree_end: (R, T) int64, the place in the row where the subtree of the token stops.
        attention_mask: (R, T) bool, False at padding on the right of a row; None in the tree layout,
            where no row is padded.
        read_at: (N,) int64, flat place ``row * T + place`` of each trained token's parent.
        labels: (N,) int64, the trained tokens.
        branch, column: (N,) int64, the cell of each trained token in the grid.
        leaf_at: (B,) int64, flat place of each branch's last token.
        tree_id: (B,) int64, which tree a branch belongs to, 0, 1, ... in order.
        shape: (B, A).
        extras: named (B,) or (B, A) float tensors that ride along (old logprobs, advantages, scores).
        tokens_in_paths: tokens of all branches, were each a sequence of its own.
        tokens_in_rows: tokens to compute in this layout, without padding.
        weight: 1.0, or 0.0 for a filler that only keeps the ranks in step.
    """

    input_ids: Tensor
    position_ids: Tensor
    subtree_end: Tensor
    attention_mask: Tensor | None
    read_at: Tensor
    labels: Tensor
    branch: Tensor
    column: Tensor
    leaf_at: Tensor
    tree_id: Tensor
    shape: tuple[int, int]
    extras: dict[str, Tensor] = field(default_factory=dict)
    tokens_in_paths: int = 0
    tokens_in_rows: int = 0
    weight: float = 1.0

    @property
    def mask(self) -> Tensor:
        """(B, A) bool, True where a cell of the grid holds a trained token."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.branch.device)
        mask[self.branch, self.column] = True
        return mask

    @property
    def n_trained(self) -> int:
        return len(self.labels)

    @property
    def n_branches(self) -> int:
        return self.shape[0]

    @property
    def n_trees(self) -> int:
        return int(self.tree_id[-1]) + 1 if len(self.tree_id) else 0

    def grid(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Put (N,) values of the trained tokens into their cells of a (B, A) grid, with gradients."""
        grid = torch.full(self.shape, fill, dtype=values.dtype, device=values.device)
        return grid.index_put((self.branch, self.column), values)

    def with_extras(self, **extras: Tensor) -> Batch:
        return replace(self, extras={**self.extras, **extras})

    def as_filler(self) -> Batch:
        """The same batch with no weight: computed so that collectives match, counted nowhere."""
        return replace(self, weight=0.0)

    def to(self, device: torch.device | str) -> Batch:
        moved = {
            name: getattr(self, name).to(device)
            for name in (
                "input_ids",
                "position_ids",
                "subtree_end",
                "read_at",
                "labels",
                "branch",
                "column",
                "leaf_at",
                "tree_id",
            )
        }
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        extras = {name: value.to(device) for name, value in self.extras.items()}
        return replace(self, **moved, attention_mask=mask, extras=extras)


def under_root(batch: Batch, n: int) -> Batch:
    """The batch with n further tokens (ids 0) before each row, above everything in it.

    Every tree of the row hangs below the same n tokens: places and positions move by n, what is read where does not
    change otherwise.
    """
    rows, length = batch.input_ids.shape
    root = torch.arange(n, device=batch.position_ids.device).expand(rows, n)
    mask = batch.attention_mask
    return replace(
        batch,
        input_ids=torch.nn.functional.pad(batch.input_ids, (n, 0)),
        position_ids=torch.cat([root, batch.position_ids + n], 1),
        subtree_end=torch.cat([torch.full_like(root, n + length), batch.subtree_end + n], 1),
        attention_mask=None if mask is None else torch.nn.functional.pad(mask, (n, 0), value=True),
        read_at=batch.read_at + n * (batch.read_at // length + 1),
        leaf_at=batch.leaf_at + n * (batch.leaf_at // length + 1),
    )


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
