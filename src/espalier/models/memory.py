"""Keys and values of a batch that is being sampled: each prompt once, each answer a place at a time.

Transformers' dynamic cache copies all keys and values at every token and repeats a prompt for each of its
samples. Here the prompt's are written once, whatever the number of samples, and the answers' into places
that were set aside. A query attends to both parts apart, and the parts are merged by their log-sum-exps,
which is exactly the softmax over both.

P prompts, C copies of each, B = P * C rows, K key heads, G query heads a key head, L tokens of the longest
prompt, M new tokens at most, D numbers a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Memory(Cache):
    """A cache in transformers' convention that our attention reads in two parts.

    Args:
        layers: of the model.
        lengths: tokens of each prompt (P,).
        copies: samples of each prompt, C.
        max_new_tokens: places set aside for each answer, M.
    """

    def __init__(self, layers: int, lengths: list[int], copies: int, max_new_tokens: int) -> None:
        super().__init__(layers=[_Layer(self, i) for i in range(layers)])
        self.lengths = lengths
        self.copies = copies
        self.room = max_new_tokens
        self.step = -1  # the place that the next token is written to; -1 while the prompts are read
        self.layer: _Layer | None = None
        self.prompt_mask: Tensor | None = None

    def start(self, dtype: torch.dtype, device: torch.device) -> None:
        """All prompts are read: from here on one token a row."""
        self.step = 0
        longest = max(self.lengths)
        if min(self.lengths) < longest:
            lengths = torch.tensor(self.lengths, device=device)[:, None]
            padding = torch.arange(longest, device=device)[None] >= lengths
            mask = torch.zeros(padding.shape, dtype=dtype, device=device)
            self.prompt_mask = mask.masked_fill_(padding, torch.finfo(dtype).min)[:, None, None]

    def keep(self, prompts: Tensor, rows: Tensor, copies: int) -> None:
        """Go on with fewer rows: `prompts` (P',) of the old, `rows` (P' * copies,) of the old rows."""
        self.lengths = [self.lengths[i] for i in prompts.tolist()]
        self.copies = copies
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            layer.keep(prompts, rows)
        if self.prompt_mask is not None:
            self.prompt_mask = self.prompt_mask[prompts]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One query a row over its prompt and its answer so far: (B, H, 1, D) to the same.

        Args:
            query: (B, H, 1, D).
            key, value: (B, K, t, D), what `update` of the present layer has returned.
            scale: of the scores.
        """
        layer = self.layer
        assert layer is not None and layer.prompt_keys is not None and layer.prompt_values is not None
        rows, heads, _, size = query.shape
        kinds = key.shape[1]
        groups = heads // kinds
        prompts = rows // self.copies
        # Query heads of one key head stand as queries of that head: nothing is repeated.
        grouped = query.reshape(rows, kinds, groups, size)
        shared = (
            grouped.view(prompts, self.copies, kinds, groups, size)
            .transpose(1, 2)
            .reshape(prompts, kinds, self.copies * groups, size)
        )
        mask = self.prompt_mask
        if mask is not None:
            mask = mask.to(query.dtype).expand(prompts, 1, shared.shape[2], -1)
        first, first_lse = attention_over(shared, layer.prompt_keys, layer.prompt_values, mask, scale)
        first = _by_row(first, self.copies, groups).reshape(rows, kinds, groups, size)
        first_lse = _by_row(first_lse[..., None], self.copies, groups).reshape(rows, kinds, groups, 1)
        second, second_lse = attention_over(grouped, key, value, None, scale)
        weight = torch.sigmoid(first_lse - second_lse[..., None]).to(query.dtype)
        return torch.lerp(second, first, weight).reshape(rows, heads, 1, size)


class _Layer(CacheLayerMixin):
    """The keys and values of one layer."""

    is_compileable = False
    is_sliding = False

    def __init__(self, memory: Memory, index: int) -> None:
        super().__init__()
        self.memory, self.index = memory, index
        self.prompt_keys: Tensor | None = None  # (P, K, L, D)
        self.prompt_values: Tensor | None = None
        self.answer_keys: Tensor | None = None  # (B, K, M, D)
        self.answer_values: Tensor | None = None
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take in the prompts' (1, K, T, D), or one token's (B, K, 1, D); returns what to attend to."""
        memory = self.memory
        memory.layer = self
        if memory.step < 0:
            self._read_prompts(key_states, value_states)
            return key_states, value_states
        if self.answer_keys is None or self.answer_values is None:
            rows, kinds, size = len(key_states), key_states.shape[1], key_states.shape[3]
            self.answer_keys = key_states.new_empty(rows, kinds, memory.room, size)
            self.answer_values = value_states.new_empty(rows, kinds, memory.room, value_states.shape[-1])
        at = memory.step
        self.answer_keys[:, :, at] = key_states[:, :, 0]
        self.answer_values[:, :, at] = value_states[:, :, 0]
        return self.answer_keys[:, :, : at + 1], self.answer_values[:, :, : at + 1]

    def _read_prompts(self, keys: Tensor, values: Tensor) -> None:
        """Cut the row of all prompts, one after the other, into a padded one for each."""
        lengths = self.memory.lengths
        padded = []
        for held in (keys, values):
            store = held.new_zeros(len(lengths), held.shape[1], max(lengths), held.shape[3])
            start = 0
            for i, length in enumerate(lengths):
                store[i, :, :length] = held[0, :, start : start + length]
                start += length
            padded.append(store)
        self.prompt_keys, self.prompt_values = padded

    def keep(self, prompts: Tensor, rows: Tensor) -> None:
        assert self.prompt_keys is not None and self.prompt_values is not None
        if len(prompts) < len(self.prompt_keys):
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]
        if self.answer_keys is not None and self.answer_values is not None:
            used = self.memory.step
            for name in ("answer_keys", "answer_values"):
                held = getattr(self, name)
                store = held.new_empty(len(rows), *held.shape[1:])
                store[:, :, :used] = held[rows, :, :used]
                setattr(self, name, store)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the places are set aside at the first token."""

    def get_seq_length(self) -> int:
        return 0 if self.memory.step < 0 else max(self.memory.lengths) + self.memory.step

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


def _by_row(x: Tensor, copies: int, groups: int) -> Tensor:
    """(P, K, C * G, X) to (P, C, K, G, X)."""
    prompts, kinds, _, size = x.shape
    return x.view(prompts, kinds, copies, groups, size).transpose(1, 2)


def attention_over(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention without causality, with the log-sum-exp of the scores: (..., Q, D) and float32 (..., Q)."""
    if query.device.type == "cpu":
        return _flash(query, key, value, 0.0, False, attn_mask=mask, scale=scale)
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scale
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    return torch.matmul((scores - lse[..., None]).exp().to(value.dtype), value), lse
