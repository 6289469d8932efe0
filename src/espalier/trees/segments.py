"""Exact tree attention on a CPU without a mask over the whole row.

A node's tokens see themselves causally and every token below a node sees all of it, so attention over a
row splits into dense pieces: one causal square a node, and one full rectangle a node that has something
below it (the queries below it are one contiguous stretch of the row). Small subtrees that lie side by
side are cheaper as one masked square. The pieces that one query takes part in are merged by their
log-sum-exps, in the forward as in FlashAttention (Dao et al. 2022), and each piece's backward is given
the merged output and log-sum-exp, as in ring attention (Liu et al. 2023): the result is the softmax over
all keys that the query sees, not an approximation.

T tokens of the one row, H heads, D numbers a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espalier.trees.mask import additive_mask

SMALL = 128
"""Subtrees side by side up to so many tokens become one masked square (measured: benchmarks/attention.py)."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class AttentionPiece:
    """Queries ``q_start:q_end`` against keys ``k_start:k_end``: all of them, causally, or under a mask."""

    q_start: int
    q_end: int
    k_start: int
    k_end: int
    causal: bool = False
    mask: Tensor | None = None


def plan(subtree_end: Tensor, small: int = SMALL) -> list[AttentionPiece]:
    """The pieces that together are the rule ``k <= q < subtree_end[k]``.

    Args:
        subtree_end: (T,) int64 of one row in depth-first order.
        small: tokens up to which neighbouring subtrees are taken together under a mask.
    """
    ends = subtree_end.tolist()
    pieces: list[AttentionPiece] = []
    # Each entry is a stretch of the row that holds whole sibling subtrees (a forest).
    stack = [(0, len(ends))]
    while stack:
        start, stop = stack.pop()
        at = start
        while at < stop:
            block = at
            while block < stop and ends[block] - at <= small:
                block = ends[block]
            if block > at:
                pieces.append(_square(subtree_end, at, block))
                at = block
                continue
            node_end = _run(ends, at)
            pieces.append(AttentionPiece(at, node_end, at, node_end, causal=True))
            if node_end < ends[at]:
                pieces.append(AttentionPiece(node_end, ends[at], at, node_end))
                stack.append((node_end, ends[at]))
            at = ends[at]
    return pieces


def _run(ends: list[int], start: int) -> int:
    """Where the stretch of equal subtree ends that begins at `start` stops: one node, or a chain of them."""
    at = start
    while at < len(ends) and ends[at] == ends[start]:
        at += 1
    return at


def _square(subtree_end: Tensor, start: int, stop: int) -> AttentionPiece:
    ends = subtree_end[start:stop] - start
    if bool((ends == stop - start).all()):
        return AttentionPiece(start, stop, start, stop, causal=True)
    mask = additive_mask(ends[None], ends[None], torch.float32)
    return AttentionPiece(start, stop, start, stop, mask=mask)


def tree_attention(
    query: Tensor, key: Tensor, value: Tensor, pieces: list[AttentionPiece], scale: float
) -> Tensor:
    """Attention of every query over all keys that it sees.

    Args:
        query, key, value: (1, H, T, D), the same H and D for all three.
        pieces: from `plan` for this row.
        scale: factor of the scores, usually ``D ** -0.5``.

    Returns:
        (1, H, T, D).
    """
    merged: Tensor = _TreeAttention.apply(query, key, value, pieces, scale)  # type: ignore[no-untyped-call]
    return merged


def with_lse(
    query: Tensor, key: Tensor, value: Tensor, pieces: list[AttentionPiece], scale: float
) -> tuple[Tensor, Tensor]:
    """`tree_attention` without gradients, and the log-sum-exp (1, H, T) of each query's scores."""
    if len(pieces) == 1:
        return _attend(query, key, value, pieces[0], scale)
    return _merged(query, key, value, pieces, scale)


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: list[AttentionPiece], scale: float
    ) -> Tensor:
        out, lse = with_lse(query, key, value, pieces, scale)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.pieces, ctx.scale = pieces, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        (grad,) = grads
        d_query, d_key, d_value = (torch.zeros_like(x) for x in (query, key, value))
        for piece in ctx.pieces:
            q, k = slice(piece.q_start, piece.q_end), slice(piece.k_start, piece.k_end)
            parts = _flash_backward(
                grad[:, :, q],
                query[:, :, q],
                key[:, :, k],
                value[:, :, k],
                out[:, :, q],
                lse[:, :, q],
                0.0,
                piece.causal,
                attn_mask=None if piece.mask is None else piece.mask.to(query.dtype),
                scale=ctx.scale,
            )
            d_query[:, :, q] += parts[0]
            d_key[:, :, k] += parts[1]
            d_value[:, :, k] += parts[2]
        return d_query, d_key, d_value, None, None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, piece: AttentionPiece, scale: float
) -> tuple[Tensor, Tensor]:
    """One piece: its output (1, H, Q, D) and the log-sum-exp of its scores (1, H, Q), float32 or wider."""
    q, k = slice(piece.q_start, piece.q_end), slice(piece.k_start, piece.k_end)
    mask = None if piece.mask is None else piece.mask.to(query.dtype)
    out, lse = _flash(
        query[:, :, q], key[:, :, k], value[:, :, k], 0.0, piece.causal, attn_mask=mask, scale=scale
    )
    return out, lse


def _merged(
    query: Tensor, key: Tensor, value: Tensor, pieces: list[AttentionPiece], scale: float
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)  # what the pieces' log-sum-exps come in
    out = torch.zeros(query.shape, dtype=wide)
    lse = torch.full(query.shape[:3], -torch.inf, dtype=wide)
    for piece in pieces:
        part, part_lse = _attend(query, key, value, piece, scale)
        q = slice(piece.q_start, piece.q_end)
        both = torch.logaddexp(lse[:, :, q], part_lse)
        kept = (lse[:, :, q] - both).exp_()[..., None]
        out[:, :, q] = out[:, :, q] * kept + part * (part_lse - both).exp_()[..., None]
        lse[:, :, q] = both
    return out.to(query.dtype), lse
