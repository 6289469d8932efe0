"""The Batch's own small functions."""

from __future__ import annotations

from collections.abc import Callable

import torch

from espalier.trees import Tree, lay_out_padded, lay_out_tree

Forest = Callable[..., list[Tree]]


def test_grid_puts_each_value_into_its_cell_and_carries_gradients(forest: Forest) -> None:
    batch = lay_out_tree(forest(3))
    values = torch.randn(batch.n_trained, requires_grad=True)
    grid = batch.grid(values, fill=-7.0)
    for i, (b, c) in enumerate(zip(batch.branch.tolist(), batch.column.tolist(), strict=True)):
        assert grid[b, c] == values[i]
    assert (grid[~batch.mask] == -7.0).all()
    assert int(batch.mask.sum()) == batch.n_trained
    (grid * 2).sum().backward()
    assert torch.equal(values.grad, torch.full_like(values, 2.0))


def test_counts(forest: Forest) -> None:
    trees = forest(5, trees=4)
    batch = lay_out_padded(trees)
    assert batch.n_trees == 4
    assert batch.n_branches == sum(t.n_branches for t in trees)
    assert batch.n_trained == sum(t.n_trained for t in trees)


def test_extras_are_added_and_replaced_without_touching_the_old_batch(forest: Forest) -> None:
    batch = lay_out_tree(forest(1))
    more = batch.with_extras(scores=torch.zeros(batch.n_branches), advantages=torch.ones(batch.shape))
    assert set(more.extras) == {"scores", "old_logprobs", "advantages"}
    assert not more.extras["scores"].any()
    assert batch.extras["scores"].any()
    assert "advantages" not in batch.extras


def test_a_filler_weighs_nothing_and_is_otherwise_the_same(forest: Forest) -> None:
    batch = lay_out_tree(forest(1))
    filler = batch.as_filler()
    assert (batch.weight, filler.weight) == (1.0, 0.0)
    assert torch.equal(filler.input_ids, batch.input_ids)


def test_moving_moves_every_tensor(forest: Forest) -> None:
    for lay_out in (lay_out_tree, lay_out_padded):
        moved = lay_out(forest(1)).to("meta")
        tensors = [v for v in vars(moved).values() if isinstance(v, torch.Tensor)] + [*moved.extras.values()]
        assert len(tensors) == (11 if lay_out is lay_out_tree else 12)
        assert all(t.device.type == "meta" for t in tensors)
