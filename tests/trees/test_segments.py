"""Attention in pieces is the dense masked attention, in its outputs and in its gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from espalier.trees import Tree, lay_out_tree
from espalier.trees.mask import additive_mask, visible
from espalier.trees.segments import plan, tree_attention

Forest = Callable[..., list[Tree]]
SMALL = (0, 1, 5, 17, 128)


@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("seed", range(12))
def test_the_pieces_cover_what_is_seen_exactly_once(forest: Forest, seed: int, small: int) -> None:
    batch = lay_out_tree(forest(seed))
    truth = visible(batch.subtree_end, batch.position_ids)[0]
    count = torch.zeros(truth.shape, dtype=torch.int64)
    for piece in plan(batch.subtree_end[0], small):
        part = count[piece.q_start : piece.q_end, piece.k_start : piece.k_end]
        if piece.mask is not None:
            part += (piece.mask[0, 0] == 0).long()
        elif piece.causal:
            part += torch.ones_like(part).tril()
        else:
            part += 1
    assert torch.equal(count, truth.long())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("seed", range(6))
def test_outputs_and_gradients_are_those_of_dense_attention(
    forest: Forest, seed: int, small: int, dtype: torch.dtype, tolerance: float
) -> None:
    batch = lay_out_tree(forest(seed, trees=2, branches=6, longest=24))
    length = batch.input_ids.shape[1]
    scale = 0.7
    inputs = [torch.randn(1, 3, length, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    weights = torch.randn(1, 3, length, 8, dtype=dtype)
    mask = additive_mask(batch.subtree_end, batch.position_ids, dtype)
    truth = scaled_dot_product_attention(*inputs, attn_mask=mask, scale=scale)
    expected = torch.autograd.grad((truth * weights).sum(), inputs)
    found = tree_attention(*inputs, plan(batch.subtree_end[0], small), scale)
    assert found.dtype == dtype
    torch.testing.assert_close(found, truth, rtol=tolerance, atol=tolerance)
    grads = torch.autograd.grad((found * weights).sum(), inputs)
    for name, got, want in zip(("query", "key", "value"), grads, expected, strict=True):
        torch.testing.assert_close(
            got, want, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_one_long_document_needs_one_piece() -> None:
    batch = lay_out_tree([Tree.from_path([1] * 500, [False] * 500)])
    pieces = plan(batch.subtree_end[0], 128)
    assert [(p.q_start, p.q_end, p.causal, p.mask) for p in pieces] == [(0, 500, True, None)]


def test_large_scores_do_not_overflow_when_pieces_are_merged() -> None:
    tree = Tree.join([([1] * 9 + [a] * 9, [False] * 18) for a in (2, 3)])
    batch = lay_out_tree([tree])
    q, k, v = (torch.randn(1, 2, 27, 8) for _ in range(3))
    mask = additive_mask(batch.subtree_end, batch.position_ids, torch.float32)
    truth = scaled_dot_product_attention(q * 100, k * 100, v, attn_mask=mask, scale=1.0)
    found = tree_attention(q * 100, k * 100, v, plan(batch.subtree_end[0], 0), 1.0)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
