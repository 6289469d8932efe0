"""The rule of who sees whom, written as plain loops, against each of its forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from espalier.trees import Tree, lay_out_padded, lay_out_tree
from espalier.trees.mask import additive_mask, block_mask, visible

Forest = Callable[..., list[Tree]]


def by_loops(ends: torch.Tensor, positions: torch.Tensor, window: int | None) -> torch.Tensor:
    rows, size = ends.shape
    seen = torch.zeros(rows, size, size, dtype=torch.bool)
    for r in range(rows):
        for q in range(size):
            for k in range(q + 1):
                near = window is None or positions[r, q] - positions[r, k] < window
                seen[r, q, k] = bool(q < ends[r, k] and near)
    return seen


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_every_form_is_the_rule(forest: Forest, seed: int, window: int | None) -> None:
    trees = forest(seed)
    for batch in (lay_out_tree(trees), lay_out_padded(trees)):
        ends, positions = batch.subtree_end, batch.position_ids
        truth = by_loops(ends, positions, window)
        assert torch.equal(visible(ends, positions, window), truth)
        for dtype in (torch.float32, torch.float16):
            mask = additive_mask(ends, positions, dtype, window)
            assert mask.dtype == dtype
            assert torch.equal(mask[:, 0] == 0, truth)
            assert (mask[:, 0][~truth] == torch.finfo(dtype).min).all()
        rows, size = ends.shape
        blocks = block_mask(ends, positions, window)
        assert blocks.shape[-2:] == (size, size)
        row, q, k = torch.meshgrid(*(torch.arange(n) for n in (rows, size, size)), indexing="ij")
        assert torch.equal(blocks.mask_mod(row, torch.tensor(0), q, k), truth)


def test_blocks_that_nobody_sees_are_left_out() -> None:
    long = [1] * 300
    trees = [Tree.from_path(long, [False] * 300), Tree.from_path(long, [False] * 300)]
    batch = lay_out_tree(trees)
    dense = block_mask(batch.subtree_end, batch.position_ids).to_dense()[0, 0]
    seen = visible(batch.subtree_end, batch.position_ids)[0]
    for q in range(dense.shape[0]):
        for k in range(dense.shape[1]):
            part = seen[q * 128 : (q + 1) * 128, k * 128 : (k + 1) * 128]
            assert bool(dense[q, k]) == bool(part.any())
    assert not dense.all()


def test_a_window_counts_distance_from_the_root_and_not_places_in_the_row() -> None:
    tree = Tree.join([([9, 1, 1, 1], [False] * 4), ([9, 2], [False] * 2)])
    batch = lay_out_tree([tree])
    seen = visible(batch.subtree_end, batch.position_ids, window=2)[0]
    assert seen[4].nonzero()[:, 0].tolist() == [0, 4], "the second answer stands right below the root"
    assert seen[3].nonzero()[:, 0].tolist() == [2, 3]
