"""Keys and values of a batch that is being sampled: each prompt once, each answer a place at a time.

Transformers' dynamic cache copies all keys and values at every token, repeats a prompt for each of its
samples and pads every prompt to the longest. Here the prompts are written once, whatever the number of
samples, in groups of like length, and the answers into places that were set aside. A query attends to both
parts apart, and the parts are merged by their log-sum-exps, which is exactly the softmax over both.

P prompts, C copies of each, B rows (P * C until some are dropped), K key heads, G query heads a key head,
L tokens of the longest prompt of a group, M new tokens at most, D numbers a head.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

CALL = {"cpu": 200, "cuda": 20_000}
"""What one more attention call costs, in tokens of padding that could be read in the time."""


def alike(lengths: Sequence[int], call: int) -> list[tuple[int, int]]:
    """Cut prompts, in the order given, into groups that are read at the least cost: (start, end) of each.

    A group costs its longest prompt times its prompts, plus `call`.
    """
    best: list[tuple[float, int]] = [
        (0.0, 0)
    ]  # of the first n prompts: the cost, where the last group starts
    for end in range(1, len(lengths) + 1):
        longest, cheapest = 0, (float("inf"), 0)
        for start in range(end - 1, -1, -1):
            longest = max(longest, lengths[start])
            cheapest = min(cheapest, (best[start][0] + longest * (end - start) + call, start))
        best.append(cheapest)
    groups, end = [], len(lengths)
    while end:
        start = best[end][1]
        groups.append((start, end))
        end = start
    return groups[::-1]


@dataclass
class _Group:
    """Prompts of like length, which one call attends to.

    Attributes:
        prompts: their numbers, in order.
        longest: tokens of the longest.
        mask: (P', 1, 1, L) of 0 and the least number, None where all are of one length.
        rows: (P' * C') the row of each query, C' being the most copies of any of these prompts; a copy that
            a prompt has not is stood in for by any row.
        copies: C'.
    """

    prompts: list[int]
    longest: int
    mask: Tensor | None
    rows: Tensor
    copies: int


class Memory(Cache):
    """A cache in transformers' convention that our attention reads in two parts.

    Args:
        layers: of the model.
        lengths: tokens of each prompt (P,), prompts of like length side by side.
        copies: samples of each prompt, C.
        max_new_tokens: places set aside for each answer, M.
        dtype, device: what keys and values are kept in and on.
    """

    def __init__(
        self,
        layers: int,
        lengths: Sequence[int],
        copies: int,
        max_new_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(layers=[_Layer(self) for _ in range(layers)])
        self.lengths = list(lengths)
        self.room = max_new_tokens
        self.step = -1  # the place that the next token is written to; -1 while the prompts are read
        self.reading = (0, 0)  # the prompts that are read now
        self.layer: _Layer | None = None
        self.dtype, self.device = dtype, device
        self.of_row = [i for i in range(len(self.lengths)) for _ in range(copies)]  # the prompt of each row
        self.groups = []
        for start, end in alike(self.lengths, CALL.get(device.type, CALL["cuda"])):
            longest = max(self.lengths[start:end])
            tokens = torch.tensor(self.lengths[start:end], device=device)[:, None]
            padding = torch.arange(longest, device=device)[None] >= tokens
            mask = torch.zeros(padding.shape, dtype=dtype, device=device)
            mask = mask.masked_fill_(padding, torch.finfo(dtype).min)[:, None, None]
            none = torch.empty(0, dtype=torch.int64)
            self.groups.append(
                _Group(list(range(start, end)), longest, mask if padding.any() else None, none, 0)
            )
        self._place_rows()

    def _place_rows(self) -> None:
        """Say which rows ask each group, and where each row's answer then stands."""
        rows_of: dict[int, list[int]] = {}
        for row, prompt in enumerate(self.of_row):
            rows_of.setdefault(prompt, []).append(row)
        stands = [0] * len(self.of_row)
        at = 0
        for group in self.groups:
            group.copies = max(len(rows_of[p]) for p in group.prompts)
            rows = []
            for prompt in group.prompts:
                own = rows_of[prompt]
                for copy, row in enumerate(own):
                    stands[row] = at + copy
                rows += own + own[:1] * (group.copies - len(own))
                at += group.copies
            group.rows = torch.tensor(rows, device=self.device)
        self.stands = None if stands == list(range(at)) else torch.tensor(stands, device=self.device)

    def positions(self) -> Tensor:
        """(B,) of the next token."""
        return torch.tensor([self.lengths[p] + self.step for p in self.of_row], device=self.device)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (B',) of the present ones, in their order."""
        kept = rows.tolist()
        self.of_row = [self.of_row[i] for i in kept]
        living = set(self.of_row)
        groups, lasting = [], []
        for group in self.groups:
            last = [i for i, p in enumerate(group.prompts) if p in living]
            lasting.append(last)
            if last and len(last) < len(group.prompts):
                group.prompts = [group.prompts[i] for i in last]
                group.mask = None if group.mask is None else group.mask[last]
            if last:
                groups.append(group)
        self.groups = groups
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            layer.keep(lasting, rows.to(self.device))
        self._place_rows()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One query a row over its prompt and its answer so far: (B, H, 1, D) to the same.

        Args:
            query: (B, H, 1, D).
            key, value: (B, K, t, D), what `update` of the present layer has returned.
            scale: of the scores.
        """
        layer = self.layer
        assert layer is not None
        rows, heads, _, size = query.shape
        kinds = key.shape[1]
        # Query heads of one key head stand as queries of that head: nothing is repeated.
        grouped = query.reshape(rows, kinds, heads // kinds, size)
        first, first_lse = self._attend_prompts(layer, grouped, scale)
        second, second_lse = attention_over(grouped, key, value, None, scale)
        weight = torch.sigmoid(first_lse - second_lse)[..., None].to(query.dtype)
        return torch.lerp(second, first, weight).reshape(rows, heads, 1, value.shape[-1])

    def _attend_prompts(self, layer: _Layer, grouped: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """(B, K, G, D) to the same, and log-sum-exps (B, K, G)."""
        _, kinds, share, size = grouped.shape
        outs, lses = [], []
        for group, keys, values in zip(self.groups, layer.prompt_keys, layer.prompt_values, strict=True):
            prompts, copies = len(group.prompts), group.copies
            asked = (
                grouped
                if len(self.groups) == 1 and self.stands is None
                else grouped.index_select(0, group.rows)
            )
            if copies > 1:
                asked = asked.view(prompts, copies, kinds, share, size).transpose(1, 2)
                asked = asked.reshape(prompts, kinds, copies * share, size)
            mask = group.mask
            if mask is not None:
                mask = mask.expand(prompts, 1, copies * share, -1)
            out, lse = attention_over(asked, keys, values, mask, scale)
            if copies > 1:
                out = out.view(prompts, kinds, copies, share, -1).transpose(1, 2).flatten(0, 1)
                lse = lse.reshape(prompts, kinds, copies, share).transpose(1, 2).flatten(0, 1)
            outs.append(out)
            lses.append(lse)
        if len(outs) == 1:
            out, lse = outs[0], lses[0]
        else:
            out, lse = torch.cat(outs), torch.cat(lses)
        if self.stands is None:
            return out, lse
        return out.index_select(0, self.stands), lse.index_select(0, self.stands)


class KeptLayer(CacheLayerMixin):
    """A layer of a cache of ours: it sets its places aside itself and has no longest length."""

    is_compileable = False
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: there is no first call that differs."""

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class _Layer(KeptLayer):
    """The keys and values of one layer."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self.prompt_keys: list[Tensor] = []  # (P', K, L, D) of each group
        self.prompt_values: list[Tensor] = []
        self.answer_keys: Tensor | None = None  # (B, K, M, D)
        self.answer_values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take in the prompts' (1, K, T, D), or one token's (B, K, 1, D); returns what to attend to."""
        memory = self.memory
        memory.layer = self
        if memory.step < 0:
            self._read(self.prompt_keys, key_states)
            self._read(self.prompt_values, value_states)
            return key_states, value_states
        if self.answer_keys is None or self.answer_values is None:
            rows, kinds, size = len(key_states), key_states.shape[1], key_states.shape[3]
            shape = (rows, kinds, memory.room)
            self.answer_keys = key_states.new_empty(*shape, size, dtype=memory.dtype)
            self.answer_values = value_states.new_empty(*shape, value_states.shape[3], dtype=memory.dtype)
        at = memory.step
        self.answer_keys[:, :, at] = key_states[:, :, 0]
        self.answer_values[:, :, at] = value_states[:, :, 0]
        return self.answer_keys[:, :, : at + 1], self.answer_values[:, :, : at + 1]

    def _read(self, stores: list[Tensor], states: Tensor) -> None:
        """Cut the row of the prompts that are read now, one after the other, into their places."""
        memory = self.memory
        _, kinds, _, size = states.shape
        if not stores:
            stores += [
                states.new_empty(len(g.prompts), kinds, g.longest, size, dtype=memory.dtype)
                for g in memory.groups
            ]
        first, last = memory.reading
        start = 0
        for group, store in zip(memory.groups, stores, strict=True):
            for place, prompt in enumerate(group.prompts):
                if first <= prompt < last:
                    length = memory.lengths[prompt]
                    store[place, :, :length] = states[0, :, start : start + length]
                    store[place, :, length:] = 0.0  # masked, but a NaN would not be
                    start += length

    def keep(self, lasting: list[list[int]], rows: Tensor) -> None:
        """`lasting`: of each group, the places of the prompts that stay; `rows` (B',) of the answers."""
        for name in ("prompt_keys", "prompt_values"):
            stores = [
                store if len(last) == len(store) else store[last]
                for store, last in zip(getattr(self, name), lasting, strict=True)
                if last
            ]
            setattr(self, name, stores)
        if self.answer_keys is not None and self.answer_values is not None:
            used = self.memory.step
            for name in ("answer_keys", "answer_values"):
                answers = getattr(self, name)
                store = answers.new_empty(len(rows), *answers.shape[1:])
                store[:, :, :used] = answers[rows, :, :used]
                setattr(self, name, store)

    def get_seq_length(self) -> int:
        return 0 if self.memory.step < 0 else max(self.memory.lengths) + self.memory.step


def attention_over(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention without causality, with the log-sum-exp of the scores: (..., Q, D) and float32 (..., Q)."""
    if query.device.type == "cpu":
        out, lse = _flash(query, key, value, 0.0, False, attn_mask=mask, scale=scale)
        return out, lse
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scale
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    return torch.matmul((scores - lse[..., None]).exp().to(value.dtype), value), lse
