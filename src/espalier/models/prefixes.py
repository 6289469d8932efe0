"""Keys and values of texts that many prompts begin with, kept from one prompt to the next.

A system prompt, a document that is asked about, a conversation so far: the tokens that a new prompt has in common
with one that was read before are not computed again. The rows below such a prefix ask it together while they are
sampled, as the branches of a tree do; what each has of its own stands in the memory that it is merged with.

K key heads, D numbers a head, B rows.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from espalier.models.memory import Memory, attention_over
from espalier.models.trunk import Trunk
from espalier.trees.tree import agreement

BLOCK = 16
"""Tokens in common are counted in blocks, so that prompts which happen to go on with a word or two in common have one
stem; for less than one the further attention call costs more than they do."""

States = list[tuple[Tensor, Tensor]]
"""Of each layer, keys and values (1, K, n, D)."""


@dataclass(frozen=True, eq=False)
class KeptPrefix:
    """Tokens that were read.

    Attributes:
        ids: (n,) int64.
        states: their keys and values.
    """

    ids: np.ndarray
    states: States = field(repr=False)

    @cached_property
    def first(self) -> bytes:
        """Its first block, which all that share anything with it have too."""
        return self.ids[:BLOCK].tobytes()

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for pair in self.states for part in pair)


class Stem(NamedTuple):
    """The first `length` tokens of a prefix, which a prompt goes on from."""

    prefix: KeptPrefix
    length: int

    @property
    def states(self) -> States:
        return [
            (keys[:, :, : self.length], values[:, :, : self.length]) for keys, values in self.prefix.states
        ]


class Prefixes:
    """The prefixes that were used last, as many as fit.

    Args:
        most_bytes: of their keys and values together; 0 keeps none.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._kept: OrderedDict[int, KeptPrefix] = OrderedDict()  # the one that was used last stands last

    def __len__(self) -> int:
        return len(self._kept)

    def stem(self, ids: Sequence[int], living: Iterable[Stem] = ()) -> Stem | None:
        """What a prompt may go on from: the longest beginning that it shares; its last token is always to be read.

        Args:
            ids: of the prompt.
            living: stems that rows have now; one of them is taken where it is about as long, since rows of one stem
                are computed together.
        """
        asked = np.asarray(ids[:-1], dtype=np.int64)
        best, length = None, 0
        for prefix in self._like(asked):
            common = shared_blocks(prefix.ids, asked)
            if common > length:
                best, length = prefix, common
        for stem in living:
            if (
                stem.length >= length - BLOCK
                and shared_blocks(stem.prefix.ids[: stem.length], asked) == stem.length
            ):
                best, length = stem.prefix, stem.length
        if best is None or not length:
            return None
        if id(best) in self._kept:
            self._kept.move_to_end(id(best))
        return Stem(best, length)

    def keep(self, prefix: KeptPrefix) -> None:
        """Keep one more; those that are its own beginning go, and those that were not used for longest, to make place."""
        size = prefix.bytes
        if size > self.most_bytes or len(prefix.ids) < BLOCK:
            return
        for other in self._like(prefix.ids):
            common = agreement(other.ids, prefix.ids)
            if common == len(prefix.ids):
                return
            if common == len(other.ids):
                self._drop(other)
        while self.bytes + size > self.most_bytes:
            self._drop(next(iter(self._kept.values())))
        self._kept[id(prefix)] = prefix
        self.bytes += size

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0

    def _like(self, ids: np.ndarray) -> list[KeptPrefix]:
        """Those that begin with the same block; the one that was used last comes first."""
        first = ids[:BLOCK].tobytes()
        return [prefix for prefix in reversed(self._kept.values()) if prefix.first == first]

    def _drop(self, prefix: KeptPrefix) -> None:
        del self._kept[id(prefix)]
        self.bytes -= prefix.bytes


def shared_blocks(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens that two texts begin with in common, in whole blocks."""
    return agreement(a, b) // BLOCK * BLOCK


class PrefixMemory(Memory):
    """A `Memory` in which a prompt is what follows its stem: rows of one stem ask its keys in one call.

    Takes what `Memory` takes; `lengths` are those of the prompts without their stems.
    """

    def __init__(self, *args: Any, stems: Sequence[Stem | None] = (), **settings: Any) -> None:
        self.stems = {number: stem for number, stem in enumerate(stems) if stem is not None}
        self._asking: list[tuple[States, Tensor | None]] = []  # a stem's states and its rows; None: all
        super().__init__(*args, **settings)

    def positions(self) -> Tensor:
        """See `Memory.positions`."""
        before = [0 if (stem := self.stems.get(p)) is None else stem.length for p in self.of_row]
        return super().positions() + torch.tensor(before, device=self.device)

    def add(self, more: Memory | None, of_row: Sequence[int]) -> None:
        """See `Memory.add`."""
        if isinstance(more, PrefixMemory):
            self.stems |= {number + len(self.lengths): stem for number, stem in more.stems.items()}
        super().add(more, of_row)

    def make_room(self, places: int) -> None:
        """Set aside so many places for answers at least, from the present ones' first on."""
        if places <= self.places:
            return
        self.places = places
        for layer in self._own_layers():
            for name in ("answer_keys", "answer_values"):
                old = getattr(layer, name)
                if old is not None:
                    new = old.new_zeros(*old.shape[:2], places, old.shape[3])
                    rows = len(self.of_row)
                    new[:rows, :, : self.step] = old[:rows, :, : self.step]
                    setattr(layer, name, new)
        self._place_rows()

    def states_of(self, prompt: int, row: int | None = None) -> States:
        """Copies of what is known of a prompt, its stem included, and of the answer that a row of it has so far."""
        group, place = next(
            (at, group.prompts.index(prompt))
            for at, group in enumerate(self.groups)
            if prompt in group.prompts
        )
        stem, length = self.stems.get(prompt), self.lengths[prompt]
        made: States = []
        for layer in self._own_layers():
            above = [] if stem is None else [stem.states[layer.index]]
            own = slice(place, place + 1)
            parts = [
                *above,
                tuple(s[group][own, :, :length] for s in (layer.prompt_keys, layer.prompt_values)),
            ]
            if row is not None and layer.answer_keys is not None and layer.answer_values is not None:
                written = slice(self.born[row], self.step)
                parts.append(
                    tuple(s[row : row + 1, :, written] for s in (layer.answer_keys, layer.answer_values))
                )
            keys, values = (torch.cat([part[i] for part in parts], 2) for i in (0, 1))
            made.append((keys, values))
        return made

    def _place_rows(self) -> None:
        super()._place_rows()
        living = {p for group in self.groups for p in group.prompts}
        self.stems = {p: stem for p, stem in self.stems.items() if p in living}
        rows_of: dict[Stem, list[int]] = {}
        for row, prompt in enumerate(self.of_row):
            if prompt in self.stems:
                rows_of.setdefault(self.stems[prompt], []).append(row)
        every = len(self.of_row)
        self._asking = [
            (stem.states, None if len(rows) == every else torch.tensor(rows, device=self.device))
            for stem, rows in rows_of.items()
        ]

    def _attend_prompts(self, layer: Any, grouped: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = super()._attend_prompts(layer, grouped, scale)
        for states, rows in self._asking:
            keys, values = states[layer.index]
            asked = grouped if rows is None else grouped.index_select(0, rows)
            count, kinds, share, size = asked.shape
            together = asked.transpose(0, 1).reshape(1, kinds, count * share, size)
            above, above_lse = attention_over(together, keys, values, None, scale)
            above = above.view(kinds, count, share, -1).transpose(0, 1)
            above_lse = above_lse.reshape(kinds, count, share).transpose(0, 1)
            below, below_lse = (out, lse) if rows is None else (out[rows], lse[rows])
            weight = torch.sigmoid(above_lse - below_lse)[..., None].to(below.dtype)
            merged, merged_lse = torch.lerp(below, above, weight), torch.logaddexp(above_lse, below_lse)
            if rows is None:
                out, lse = merged, merged_lse
            else:
                out, lse = out.index_copy(0, rows, merged), lse.index_copy(0, rows, merged_lse)
        return out, lse


class StemTrunk(Trunk):
    """A stem as the trunk that prompts go on from while they are read; what is read goes into a memory."""

    def __init__(self, stem: Stem, memory: Memory) -> None:
        super().__init__(len(stem.prefix.states), stem.length)
        self.memory = memory
        for layer, (keys, values) in zip(self.layers, stem.states, strict=True):
            layer.keys, layer.values = keys, values  # type: ignore[union-attr]
        self.filled = True

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep what is read in the memory; `attend` adds the stem's part."""
        self.layer = self.layers[layer_idx]  # type: ignore[assignment]
        kept: tuple[Tensor, Tensor] = self.memory.update(key_states, value_states, layer_idx, *args, **kwargs)
        return kept
