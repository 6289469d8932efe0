"""Keys and values of a batch that is being sampled: each prompt once, each answer a place at a time.

Transformers' dynamic cache copies all keys and values at every token, repeats a prompt for each of its
samples and pads every prompt to the longest. Here the prompts are written once, whatever the number of
samples, in groups of like length, and the answers into places that were set aside. A query attends to both
parts apart, and the parts are merged by their log-sum-exps, which is exactly the softmax over both.

Rows may come and go. All rows write their next token to the same place, so that a row that came later has
its first token further on; places before the first token of the oldest row are given up when rows go.

P prompts, C copies of each, B rows (P * C until some go or come), K key heads, G query heads a key head,
L tokens of the longest prompt of a group, M places for answers, D numbers a head.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from espalier.models.grouping import Cohort, Group, cohorts, grouped

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Memory(Cache):
    """A cache in transformers' convention that our attention reads in two parts.

    Args:
        layers: of the model.
        lengths: tokens of each prompt (P,), prompts of like length side by side.
        copies: samples of each prompt, C.
        places: set aside for each answer, M.
        dtype, device: what keys and values are kept in and on.
        most: rows at a time; 0: those that there are, and no others come.
    """

    def __init__(
        self,
        layers: int,
        lengths: Sequence[int],
        copies: int,
        places: int,
        dtype: torch.dtype,
        device: torch.device,
        most: int = 0,
    ) -> None:
        super().__init__(layers=[_Layer(self, index) for index in range(layers)])
        self.lengths = list(lengths)  # of all prompts that were ever read, by number
        self.places = places
        self.step = -1  # the place that the next token is written to; -1 while the prompts are read
        self.reading = (0, 0)  # the prompts that are read now
        self.layer: _Layer | None = None
        self.dtype, self.device = dtype, device
        self.of_row = [i for i in range(len(self.lengths)) for _ in range(copies)]  # the prompt of each row
        self.born = [0] * len(self.of_row)  # the place of each row's first token
        self.most, self.fixed = max(most, len(self.of_row)), most == 0
        self.groups = grouped(range(len(self.lengths)), self.lengths, dtype, device)
        self.cohorts: list[Cohort] = []
        self._place_rows()

    def _place_rows(self) -> None:
        """Say which rows ask each group, where each row's answer then stands, and which answers are of like length."""
        rows_of: dict[int, list[int]] = {}
        for row, prompt in enumerate(self.of_row):
            rows_of.setdefault(prompt, []).append(row)
        stands = [0] * len(self.of_row)
        at = 0
        for group in self.groups:
            group.copies = max(1, *(len(rows_of.get(p, ())) for p in group.prompts))
            rows = []
            for prompt in group.prompts:
                own = rows_of.get(prompt, [])  # none: kept for rows that are still to come
                for copy, row in enumerate(own):
                    stands[row] = at + copy
                rows += own + (own or [0])[:1] * (group.copies - len(own))
                at += group.copies
            group.rows = torch.tensor(rows, device=self.device)
        self.stands = None if stands == list(range(at)) else torch.tensor(stands, device=self.device)
        self.cohorts = cohorts(self.born, self.places, self.dtype, self.device) if any(self.born) else []

    def positions(self) -> Tensor:
        """(B,) of the next token."""
        at = [self.lengths[p] + self.step - born for p, born in zip(self.of_row, self.born, strict=True)]
        return torch.tensor(at, device=self.device)

    def keep(self, rows: Tensor, held: int | None = None) -> None:
        """Go on with these rows (B',) of the present ones, in their order; prompt `held` stays in any case."""
        kept = rows.tolist()
        self.of_row = [self.of_row[i] for i in kept]
        first = min((self.born[i] for i in kept), default=self.step)
        self.born = [self.born[i] - first for i in kept]
        living = {*self.of_row, held}
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
        for layer in self._own_layers():
            layer.keep(lasting, rows.to(self.device), first)
        self.step -= first
        self._place_rows()

    def add(self, more: Memory | None, of_row: Sequence[int]) -> None:
        """Put new rows behind the present ones; the next step writes their first token.

        Args:
            more: a memory of prompts that were read and have no rows yet, numbered on from those here; it is used up.
            of_row: the prompt of each new row: one of those, or one that was held.
        """
        assert len(self.of_row) + len(of_row) <= self.most, "places were set aside for fewer rows"
        self.of_row += of_row
        self.born += [self.step] * len(of_row)
        if more is not None:
            sources = self.groups + more.groups
            for group in more.groups:
                group.prompts = [p + len(self.lengths) for p in group.prompts]
            self.lengths += more.lengths
            # By length, so that those of like length stand side by side.
            numbers = sorted((p for group in sources for p in group.prompts), key=lambda p: -self.lengths[p])
            self.groups = grouped(numbers, self.lengths, self.dtype, self.device)
            for layer, other in zip(self._own_layers(), more._own_layers(), strict=True):
                layer.join(other, sources)
        self._place_rows()

    def _own_layers(self) -> list[_Layer]:
        return [layer for layer in self.layers if isinstance(layer, _Layer)]

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
        second, second_lse = self._attend_answers(grouped, key, value, scale)
        weight = torch.sigmoid(first_lse - second_lse)[..., None].to(query.dtype)
        return torch.lerp(second, first, weight).reshape(rows, heads, 1, value.shape[-1])

    def _attend_answers(
        self, grouped: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """(B, K, G, D) to the same, and log-sum-exps (B, K, G)."""
        if not self.cohorts:
            return attention_over(grouped, key, value, None, scale)
        outs, lses = [], []
        for cohort in self.cohorts:
            own, seen = slice(cohort.start, cohort.end), slice(cohort.first, key.shape[2])
            mask = cohort.mask
            if mask is not None:
                mask = mask[..., seen].expand(-1, 1, grouped.shape[2], -1)
            out, lse = attention_over(grouped[own], key[own, :, seen], value[own, :, seen], mask, scale)
            outs.append(out)
            lses.append(lse)
        return torch.cat(outs), torch.cat(lses)

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

    def __init__(self, memory: Memory, index: int) -> None:
        super().__init__()
        self.memory, self.index = memory, index
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
        rows = len(key_states)
        if self.answer_keys is None or self.answer_values is None:
            kinds, size = key_states.shape[1], key_states.shape[3]
            shape = (memory.most, kinds, memory.places)
            # Where rows come later, the places before their first token are read, though masked: no NaN may stand there.
            made = key_states.new_empty if memory.fixed else key_states.new_zeros
            self.answer_keys = made((*shape, size), dtype=memory.dtype)
            self.answer_values = made((*shape, value_states.shape[3]), dtype=memory.dtype)
        at = memory.step
        self.answer_keys[:rows, :, at] = key_states[:, :, 0]
        self.answer_values[:rows, :, at] = value_states[:, :, 0]
        return self.answer_keys[:rows, :, : at + 1], self.answer_values[:rows, :, : at + 1]

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

    def keep(self, lasting: list[list[int]], rows: Tensor, first: int) -> None:
        """Go on with what stays.

        Args:
            lasting: of each group, the places of the prompts that stay.
            rows: (B',) the answers that stay.
            first: the place that becomes the first one.
        """
        for name in ("prompt_keys", "prompt_values"):
            stores = [
                store if len(last) == len(store) else store[last]
                for store, last in zip(getattr(self, name), lasting, strict=True)
                if last
            ]
            setattr(self, name, stores)
        if self.answer_keys is not None and self.answer_values is not None:
            used = self.memory.step
            for answers in (self.answer_keys, self.answer_values):
                answers[: len(rows), :, : used - first] = answers[rows, :, first:used]

    def join(self, other: _Layer, sources: list[Group]) -> None:
        """Put the prompts of both layers, which stand in `sources`, into the memory's new groups."""
        memory = self.memory
        for name in ("prompt_keys", "prompt_values"):
            old = getattr(self, name) + getattr(other, name)
            stores = []
            for group in memory.groups:
                # Zeros: padding is masked, but a NaN would not be.
                store = old[0].new_zeros(len(group.prompts), old[0].shape[1], group.longest, old[0].shape[3])
                place = {prompt: i for i, prompt in enumerate(group.prompts)}
                for source, held in zip(sources, old, strict=True):
                    both = [(place[p], i) for i, p in enumerate(source.prompts) if p in place]
                    if both:
                        to, where = map(list, zip(*both, strict=True))
                        width = min(group.longest, source.longest)
                        store[to, :, :width] = held[where, :, :width]
                stores.append(store)
            setattr(self, name, stores)

    def get_seq_length(self) -> int:
        return 0 if self.memory.step < 0 else int(self.memory.positions().max())


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
