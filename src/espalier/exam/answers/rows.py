"""Encoded questions as one row of trees: trunk once, question once, candidates as branches.

The same Batch as `trees.lay_out_tree` makes, but a branch's last token is not computed: its label is known and
nothing is read at it. So an answer of one token costs nothing but the question.

Q questions, B candidates in all, N scored tokens, T tokens of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from espalier.exam.answers.encode import Encoded
from espalier.trees import Batch


@dataclass
class _Row:
    """The columns of a row while it grows; see `Batch`."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    read_at: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    leaf_at: list[int] = field(default_factory=list)
    tree_id: list[int] = field(default_factory=list)
    in_paths: int = 0

    def add(self, tokens: Sequence[int], depth: int, size: int) -> None:
        """Tokens at positions from `depth` on, whose subtree is `size` tokens of the row from the first of them."""
        self.ends += [len(self.ids) + size] * len(tokens)
        self.positions += range(depth, depth + len(tokens))
        self.ids += tokens

    def batch(self) -> Batch:
        return Batch(
            input_ids=torch.tensor(self.ids)[None],
            position_ids=torch.tensor(self.positions)[None],
            subtree_end=torch.tensor(self.ends)[None],
            attention_mask=None,
            read_at=torch.tensor(self.read_at),
            labels=torch.tensor(self.labels),
            branch=torch.tensor(self.branch),
            column=torch.tensor(self.column),
            leaf_at=torch.tensor(self.leaf_at),
            tree_id=torch.tensor(self.tree_id),
            shape=(len(self.leaf_at), max(self.column) + 1),
            tokens_in_paths=self.in_paths,
            tokens_in_rows=len(self.ids),
        )


def lay_out_questions(groups: Sequence[tuple[Sequence[int], Sequence[Encoded]]], *, after: int = 0) -> Batch:
    """A row of trees, each a trunk with the questions below it.

    Args:
        groups: (trunk's tokens, questions); a trunk without tokens is laid out as nothing.
        after: positions that stand before the row in a cached trunk.
    """
    row = _Row()
    for tree, (trunk, questions) in enumerate(groups):
        row.add(trunk, after, len(trunk) + sum(question.n_rows for question in questions))
        above = len(row.ids) - 1
        for question in questions:
            depth = after + len(trunk)
            row.add(question.stem, depth, question.n_rows)
            parent = len(row.ids) - 1 if question.stem else above
            depth += len(question.stem)
            for tail, unscored in question.tails:
                start, computed = len(row.ids), len(tail) - 1
                row.add(tail[:computed], depth, computed)
                assert unscored or parent >= 0, "a scored token has a token before it"
                places = range(start + unscored - 1, start + computed)
                row.read_at += [parent if place < start else place for place in places]
                row.labels += tail[unscored:]
                row.branch += [len(row.leaf_at)] * len(places)
                row.column += range(len(places))
                row.leaf_at.append(len(row.ids) - 1)
                row.tree_id.append(tree)
                row.in_paths += depth + computed
    return row.batch()
