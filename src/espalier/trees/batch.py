"""The Batch: trees laid out in rows, with where to read what is known about each trained token.

R rows, T tokens a row, N trained tokens, B branches, A trained tokens of the longest branch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


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
