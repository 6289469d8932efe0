"""Encoded questions as one row of trees: trunk once, question once, candidates as branches.

The same Batch as `trees.lay_out_tree` makes, but a branch's last token is not computed: its label is known and
nothing is read at it. So an answer of one token costs nothing but the question.

Q questions, B candidates in all, N scored tokens, T tokens of the row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from espalier.exam.answers.encode import Encoded
from espalier.trees import Batch


def lay_out_questions(groups: Sequence[tuple[Sequence[int], Sequence[Encoded]]], *, after: int = 0) -> Batch:
    """A row of trees, each a trunk with the questions below it.

    Args:
        groups: (trunk's tokens, questions); a trunk without tokens is laid out as nothing.
        after: positions that stand before the row in a cached trunk.
    """
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    read_at: list[int] = []
    labels: list[int] = []
    branch: list[int] = []
    column: list[int] = []
    leaf_at: list[int] = []
    tree_id: list[int] = []
    in_paths = 0
    for tree, (trunk, questions) in enumerate(groups):
        size = len(trunk) + sum(q.n_rows for q in questions)
        stop = len(ids) + size
        ids += trunk
        positions += range(after, after + len(trunk))
        ends += [stop] * len(trunk)
        above = len(ids) - 1
        for question in questions:
            depth = after + len(trunk)
            stop = len(ids) + question.n_rows
            ids += question.stem
            positions += range(depth, depth + len(question.stem))
            ends += [stop] * len(question.stem)
            parent = len(ids) - 1 if question.stem else above
            depth += len(question.stem)
            for tail, unscored in question.tails:
                start, computed = len(ids), len(tail) - 1
                ids += tail[:computed]
                positions += range(depth, depth + computed)
                ends += [start + computed] * computed
                assert unscored or parent >= 0, "a scored token has a token before it"
                places = range(start + unscored - 1, start + computed)
                read_at += [parent if place < start else place for place in places]
                labels += tail[unscored:]
                branch += [len(leaf_at)] * len(places)
                column += range(len(places))
                leaf_at.append(len(ids) - 1)
                tree_id.append(tree)
                in_paths += depth + computed
    return Batch(
        input_ids=torch.tensor(ids)[None],
        position_ids=torch.tensor(positions)[None],
        subtree_end=torch.tensor(ends)[None],
        attention_mask=None,
        read_at=torch.tensor(read_at),
        labels=torch.tensor(labels),
        branch=torch.tensor(branch),
        column=torch.tensor(column),
        leaf_at=torch.tensor(leaf_at),
        tree_id=torch.tensor(tree_id),
        shape=(len(leaf_at), max(column) + 1),
        tokens_in_paths=in_paths,
        tokens_in_rows=len(ids),
    )
