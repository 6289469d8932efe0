"""The one rule of who sees whom, in the forms that attention implementations take.

Token q sees token k exactly when ``k <= q < subtree_end[k]``; with a sliding window also
``position[q] - position[k] < window``. R rows, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def visible(subtree_end: Tensor, position_ids: Tensor, window: int | None = None) -> Tensor:
    """(R, T, T) bool: ``[r, q, k]`` is True when query q of row r sees key k."""
    place = torch.arange(subtree_end.shape[1], device=subtree_end.device)
    q, k = place[None, :, None], place[None, None, :]
    seen = (k <= q) & (q < subtree_end[:, None, :])
    if window is not None:
        seen &= position_ids[:, :, None] - position_ids[:, None, :] < window
    return seen


def additive_mask(
    subtree_end: Tensor, position_ids: Tensor, dtype: torch.dtype, window: int | None = None
) -> Tensor:
    """(R, 1, T, T) float mask to be added to the attention scores: 0 where seen, the lowest float elsewhere.

    A float and not a boolean: under eager attention transformers adds the mask to the scores, so that a
    boolean one adds 0 or 1 and is wrong without a word.
    """
    seen = visible(subtree_end, position_ids, window)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def block_mask(subtree_end: Tensor, position_ids: Tensor, window: int | None = None) -> BlockMask:
    """The rule as a FlexAttention BlockMask over (R, T, T), for GPUs (Dong et al. 2024)."""
    from torch.nn.attention.flex_attention import create_block_mask

    def rule(row: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (k <= q) & (q < subtree_end[row, k])
        if window is not None:
            seen = seen & (position_ids[row, q] - position_ids[row, k] < window)
        return seen

    rows, length = subtree_end.shape
    return create_block_mask(rule, rows, None, length, length, device=subtree_end.device)
