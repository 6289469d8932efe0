"""Tree attention for Hugging Face models: one attention implementation and the mask that goes with it.

A model runs under the implementation named `NAME`. It takes tree attention when the attention mask is a
*ticket*: a (1, 1, T, T) tensor of zeros that is one number in memory, which every architecture hands down
to its attention layers untouched. Sampling has a ticket of its own, of one query. Everything else (padded
rows, generation by others) takes transformers' own SDPA with transformers' own masks. The mask itself is
never made.

The pieces of the row are kept in a slot of this module until the next tree is announced, not in a
context: gradient checkpointing runs the layers once more in the backward, when a context is long closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from espalier.models.memory import Memory
from espalier.models.trunk import Trunk, merge
from espalier.trees.batch import Batch
from espalier.trees.mask import additive_mask, block_mask
from espalier.trees.segments import AttentionPiece, plan, tree_attention, with_lse

NAME = "espalier"

Method = Literal["pieces", "blocks", "dense", "padded"]
"""How a model is told about a tree: attention in pieces (CPU), a FlexAttention block mask (GPU), a float
mask over the whole row (any device), or not at all."""


@dataclass
class _Announcement:
    """The row, or the step of sampling, that the next layers work on."""

    pieces: list[AttentionPiece]
    blocks: Any
    length: int
    memory: Memory | None = None
    trunk: Trunk | None = None


_announced = _Announcement([], None, 0)
_flex: Any = None


def attention_mask(
    batch: Batch,
    method: Method,
    dtype: torch.dtype,
    windows: dict[str, int | None],
    trunk: Trunk | None = None,
    ahead: int = 0,
) -> Any:
    """What to hand to the model as its attention mask for a batch in the tree layout.

    Args:
        batch: R = 1.
        method: how this model takes trees; not "padded".
        dtype: of the model's activations.
        windows: sliding window by layer type (None = full attention); ``{"": None}`` for a model with one
            kind of layer.
        trunk: what the row goes on from (only "pieces", and no window shorter than the longest path).
        ahead: of the first so many tokens of the row the model has keys and values, and computes nothing.

    Returns:
        A (1, 1, T, T) tensor, or one by layer type where the layers differ.
    """
    longest = int(batch.position_ids.max()) + 1
    active = {name: w if w is not None and w < longest else None for name, w in windows.items()}
    windowed = any(window is not None for window in active.values())
    assert trunk is None or (method == "pieces" and not windowed), "only pieces go on from a trunk"
    if method == "dense" or windowed:
        masks = {
            name: additive_mask(batch.subtree_end, batch.position_ids, dtype, window)[:, :, ahead:]
            for name, window in active.items()
        }
        return masks.get("", masks)
    length = batch.input_ids.shape[1] - ahead
    if method == "blocks":
        _announced.blocks, _announced.pieces = block_mask(batch.subtree_end, batch.position_ids), []
    else:
        _announced.pieces, _announced.blocks = plan(batch.subtree_end[0]), None
    _announced.length, _announced.memory = length, None
    _announced.trunk = trunk if trunk is not None and trunk.filled else None
    return _ticket(length, dtype, batch.input_ids.device)


def decoding_mask(memory: Memory, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What to hand to the model as its attention mask for one new token a row over this memory."""
    _announced.memory = memory
    return _ticket(1, dtype, device)


def _ticket(queries: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((1, 1, 1, 1), dtype=dtype, device=device).expand(1, 1, queries, max(2, queries))


def _has_ticket(mask: Tensor | None, queries: int) -> bool:
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[-1] == 1 or mask.stride()[-1] != 0:
        return False
    if queries not in (1, _announced.length):
        raise RuntimeError(
            f"a tree of {queries} tokens is computed again after one of {_announced.length} was announced: "
            "with checkpointed activations, run the backward of a batch before the next forward"
        )
    return True


def espalier_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention implementation in transformers' convention: (1, H, T, D) in, (1, T, H, D) out."""
    queries = query.shape[2]
    if not _has_ticket(attention_mask, queries):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise NotImplementedError("tree attention in pieces has no soft-cap and no sinks")
    if dropout:
        raise NotImplementedError("tree attention has no dropout of attention weights; set it to 0")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):  # rotary positions have left float32 behind
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if queries == 1 and _announced.memory is not None:
        return _announced.memory.attend(query, key, value, scale).transpose(1, 2), None
    ahead = key.shape[2] - queries
    if ahead:  # learned keys: queries that nobody reads stand in for theirs
        query = torch.nn.functional.pad(query, (0, 0, ahead, 0))
    if _announced.blocks is not None:
        out = _flex_attention(query, key, value, scale)
    else:
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        if _announced.trunk is None:
            out = tree_attention(query, key, value, _announced.pieces, scale)
        else:
            above = _announced.trunk.attend(query, scale)
            out = merge(above, with_lse(query, key, value, _announced.pieces, scale))
    return out[:, :, ahead:].transpose(1, 2), None


def _flex_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    global _flex
    if _flex is None:
        from torch.nn.attention.flex_attention import flex_attention

        # Uncompiled it makes the whole score matrix: right, and only of use where there is no compiler.
        _flex = torch.compile(flex_attention, dynamic=True) if query.is_cuda else flex_attention
    out: Tensor = _flex(query, key, value, block_mask=_announced.blocks, scale=scale, enable_gqa=True)
    return out


AttentionInterface.register(NAME, espalier_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
