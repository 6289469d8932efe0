"""Both layouts against brute force: what a token sees is its own path, and each trained token has one cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch

from espalier.trees import Batch, Tree, lay_out_padded, lay_out_tree, unrolled
from espalier.trees.mask import visible

Forest = Callable[..., list[Tree]]
SEEDS = range(40)


def seen_from(batch: Batch, flat: int) -> list[int]:
    """Flat places that the token at flat place `flat` sees."""
    row, place = divmod(flat, batch.input_ids.shape[1])
    seen = visible(batch.subtree_end, batch.position_ids)[row, place]
    return (row * batch.input_ids.shape[1] + seen.nonzero()[:, 0]).tolist()


@pytest.mark.parametrize("lay_out", [lay_out_tree, lay_out_padded])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_token_sees_its_own_path_and_nothing_else(
    forest: Forest, seed: int, lay_out: Callable[[list[Tree]], Batch]
) -> None:
    trees = forest(seed)
    batch = lay_out(trees)
    ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    cells = {
        (b, c): (at, label)
        for b, c, at, label in zip(
            batch.branch.tolist(),
            batch.column.tolist(),
            batch.read_at.tolist(),
            batch.labels.tolist(),
            strict=True,
        )
    }
    assert len(cells) == batch.n_trained, "no cell is filled twice"
    used: set[int] = set()
    branch = 0
    for i, tree in enumerate(trees):
        for tokens, trained in tree.paths():
            path = seen_from(batch, int(batch.leaf_at[branch]))
            assert ids[path].tolist() == tokens.tolist()
            assert positions[path].tolist() == list(range(len(tokens)))
            for depth, flat in enumerate(path):
                assert seen_from(batch, flat) == path[: depth + 1]
            for column, depth in enumerate(np.nonzero(trained)[0].tolist()):
                assert cells.pop((branch, column)) == (path[depth - 1], int(tokens[depth]))
            assert int(batch.tree_id[branch]) == i
            used.update(path)
            branch += 1
    assert not cells, "no cell without a trained token"
    assert batch.n_branches == branch
    assert len(used) == batch.tokens_in_rows, "no token is computed for nobody"
    assert batch.tokens_in_paths == sum(tree.n_path_tokens for tree in trees)


@pytest.mark.parametrize("seed", SEEDS)
def test_both_layouts_give_the_same_grids(forest: Forest, seed: int) -> None:
    trees = forest(seed)
    tree, padded = lay_out_tree(trees), lay_out_padded(trees)
    for name in ("labels", "branch", "column", "tree_id", "mask"):
        assert torch.equal(getattr(tree, name), getattr(padded, name)), name
    assert tree.shape == padded.shape
    for name in ("input_ids", "position_ids"):
        a, b = getattr(tree, name).flatten(), getattr(padded, name).flatten()
        assert torch.equal(a[tree.read_at], b[padded.read_at]), f"{name} of the parents"
        assert torch.equal(a[tree.leaf_at], b[padded.leaf_at]), f"{name} of the leaves"
    assert tree.extras.keys() == padded.extras.keys() == {"scores", "old_logprobs"}
    for name, value in tree.extras.items():
        assert torch.equal(value, padded.extras[name]), name
    expected = torch.cat([t.extras["scores"] for t in trees])
    assert torch.equal(tree.extras["scores"], expected)
    first = trees[0].extras["old_logprobs"]
    old = tree.extras["old_logprobs"]
    assert old.shape == tree.shape
    assert torch.equal(old[: first.shape[0], : first.shape[1]], first)
    assert not old[: first.shape[0], first.shape[1] :].any()


def test_the_example_of_the_docstring() -> None:
    flags = [False, False]
    batch = lay_out_tree([Tree.join([([7, 8, 1, 2], [*flags, True, True]), ([7, 8, 5], [*flags, True])])])
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.subtree_end.tolist() == [[5, 5, 4, 4, 5]]
    assert batch.attention_mask is None
    assert batch.read_at.tolist() == [1, 2, 1]
    assert batch.labels.tolist() == [1, 2, 5]
    assert batch.branch.tolist() == [0, 0, 1]
    assert batch.column.tolist() == [0, 1, 0]
    assert batch.leaf_at.tolist() == [3, 4]
    assert batch.tree_id.tolist() == [0, 0]
    assert (batch.tokens_in_paths, batch.tokens_in_rows) == (7, 5)


def test_padded_rows_are_padded_on_the_right() -> None:
    batch = lay_out_padded([Tree.join([([7, 8, 1], [False] * 3), ([7, 8], [False] * 2)])])
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[True] * 3, [True, True, False]]
    assert batch.input_ids.tolist() == [[7, 8, 1], [7, 8, 0]]
    assert batch.tokens_in_rows == batch.tokens_in_paths == 5


@pytest.mark.parametrize("lay_out", [lay_out_tree, lay_out_padded])
def test_trees_without_trained_tokens(lay_out: Callable[[list[Tree]], Batch]) -> None:
    batch = lay_out([Tree.from_path([1, 2], [False, False]), Tree.from_path([3], [False])])
    assert batch.shape == (2, 0)
    assert batch.n_trained == 0
    assert batch.input_ids.flatten()[batch.leaf_at].tolist() == [2, 3]


def test_trees_with_other_extras_are_not_mixed() -> None:
    one = Tree.from_path([1, 2], [False, True], source="a:1", extras={"scores": torch.ones(1)})
    other = Tree.from_path([1, 2], [False, True], source="a:2")
    with pytest.raises(AssertionError, match="a:2"):
        lay_out_tree([one, other])


@pytest.mark.parametrize("seed", SEEDS)
def test_unrolled_rows_are_those_of_the_padded_layout(forest: Forest, seed: int) -> None:
    """Whatever the trees: the same ids, masks and places as the other constructor makes."""
    trees = forest(seed)
    found, right = unrolled(lay_out_tree(trees)), lay_out_padded(trees)
    for field in fields(Batch):
        value, truth = getattr(found, field.name), getattr(right, field.name)
        if field.name == "extras":
            assert value.keys() == truth.keys() and all(torch.equal(value[k], truth[k]) for k in truth)
        elif isinstance(truth, torch.Tensor):
            assert torch.equal(value, truth), field.name
        else:
            assert value == truth, field.name
    assert unrolled(right) is right
