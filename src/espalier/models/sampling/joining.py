"""JoinedRows that join and leave at any step, each with a length of its own: what answers many people at once is built on.

`generate` knows all its prompts beforehand; here nobody knows what comes next. What a model's family allows decides
which of the two ways there are: rows over our memory, which may come at any step and share what their prompts have
in common, or one batch after the other.

P prompts, B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from espalier.models.forward import Traits
from espalier.models.prefixes import BLOCK, KeptPrefix, Prefixes, PrefixMemory, Stem, StemTrunk, shared_blocks
from espalier.models.sampling.decoding import ByHand, ByMemory, Decoder, is_plain, make_decoder, takes_rows

AHEAD = 64 * BLOCK
"""Tokens of a prompt that are read at once while answers wait for their next token."""

WORTH = 4 * BLOCK
"""A prompt is kept as soon as it is read where so many tokens of it were computed; else when its answer has ended."""


@dataclass(frozen=True)
class Newcomer:
    """A prompt whose rows are to join.

    Attributes:
        ids: at least one.
        copies: rows of it.
        room: new tokens of each at most.
    """

    ids: tuple[int, ...]
    copies: int
    room: int


class JoinedRows(Protocol):
    """JoinedRows that are stepped together, numbered in the order in which they came.

    Attributes:
        read, shared: tokens of prompts that were computed so far, and that were found computed already.
        reused: of each prompt that joined last, the tokens that were known already.
        one_batch: whether rows come only when all before them have gone.
        prefix_bytes: for what prompts have in common; 0: it is computed each time.
    """

    read: int
    shared: int
    reused: list[int]
    one_batch: bool
    prefix_bytes: int

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    @property
    def free(self) -> int:
        """JoinedRows that may join now."""
        ...

    def together(self, waiting: Sequence[Newcomer]) -> list[int]:
        """Which of those that wait, by place, are best read now; the others gain by going on from one of them."""
        ...

    def read_ahead(self, new: Newcomer) -> bool:
        """Read a part of a prompt that is too long to be read between two steps; False: it is to be read as a whole."""
        ...

    def join(self, new: Sequence[Newcomer]) -> Tensor:
        """Put rows behind the present ones; (B', V) after their prompts."""
        ...

    def next_logits(self, tokens: Tensor) -> Tensor:
        """(B, V) after the tokens (B,) that were drawn."""
        ...

    def go_on(self, rows: Sequence[int], ended: Iterable[int] = ()) -> None:
        """Keep these rows alone; what those that have `ended` wrote may be of use later."""
        ...


def make_rows(lm: nn.Module, traits: Traits, longest: int, most: int, prefix_bytes: int) -> JoinedRows:
    """JoinedRows of a model.

    Args:
        lm, traits: of the model, which is evaluating.
        longest: tokens of a prompt with its answer at most.
        most: rows at a time.
        prefix_bytes: for keys and values that prompts have in common; 0 keeps none.
    """
    if not takes_rows(lm, traits, longest):
        return OneBatch(lm, traits, most)
    kind = JoiningByHand if is_plain(lm) else Joining
    return kind(lm, traits, most, prefix_bytes if traits.method == "pieces" else 0)


class Joining(ByMemory):
    """JoinedRows over our memory: they come at any step, and prompts go on from what was kept of others.

    Args:
        lm, traits: of the model.
        most: rows at a time.
        prefix_bytes: see `make_rows`.
    """

    memory: PrefixMemory
    kept_in = PrefixMemory
    one_batch = False

    def __init__(self, lm: nn.Module, traits: Traits, most: int, prefix_bytes: int) -> None:
        self.prefixes, self.prefix_bytes = Prefixes(prefix_bytes), prefix_bytes
        super().__init__(lm, traits, [], 0, 0, most)
        self.memory.step = 0
        self.prompts_of: dict[int, tuple[int, ...]] = {}  # ids of the living prompts, by their numbers
        self.written: list[list[int]] = []  # by each row
        self.read = self.shared = 0
        self.reused: list[int] = []
        self._ahead = 0  # tokens that were read of prompts that have not joined yet

    @property
    def count(self) -> int:
        return len(self.memory.of_row)

    @property
    def free(self) -> int:
        return self.most - self.count

    def together(self, waiting: Sequence[Newcomer]) -> list[int]:
        """See `JoinedRows`: who has a block more in common with one that is read now than with what is kept waits for it."""
        chosen: list[int] = []
        to_be_kept: list[int] = []
        if not self.prefixes.most_bytes:
            return list(range(len(waiting)))
        asked = [np.asarray(new.ids[:-1], dtype=np.int64) for new in waiting]
        for at, new in enumerate(waiting):
            stem = self.prefixes.stem(new.ids, self.memory.stems.values())
            known = 0 if stem is None else stem.length
            if any(shared_blocks(asked[other], asked[at]) > known for other in to_be_kept):
                continue
            chosen.append(at)
            to_be_kept += [at] if len(new.ids) - known >= WORTH else []
        return chosen

    @torch.no_grad()
    def read_ahead(self, new: Newcomer) -> bool:
        """See `JoinedRows`; a part is kept as a prefix, which the next part goes on from."""
        stem = self.prefixes.stem(new.ids)
        known = 0 if stem is None else stem.length
        if len(new.ids) - known <= AHEAD:
            return False
        ids = new.ids[: known + AHEAD]
        more = self._memory([ids[known:]], 0)
        assert isinstance(more, PrefixMemory)
        more.stems = {} if stem is None else {0: stem}
        self._read_all(more, [ids[known:]], [None if stem is None else StemTrunk(stem, more)])
        self.prefixes.keep(KeptPrefix(np.asarray(ids, dtype=np.int64), more.states_of(0)))
        found = self.prefixes.stem(new.ids)
        if found is None or found.length < len(ids):  # there is no room for it
            return False
        self.read += AHEAD
        self._ahead += AHEAD
        return True

    @torch.no_grad()
    def join(self, new: Sequence[Newcomer]) -> Tensor:
        """See `JoinedRows`."""
        if not self.count:
            self._begin_anew()
        stems: dict[int, Stem | None] = {}
        living = [*self.memory.stems.values()]
        for at, one in enumerate(new):
            found = self.prefixes.stem(one.ids, living)
            stems[at] = found
            living += [] if found is None else [found]
        order = sorted(range(len(new)), key=lambda at: (_name(stems[at]), -len(new[at].ids)))
        tails = [new[at].ids[0 if (stem := stems[at]) is None else stem.length :] for at in order]
        own = [stems[at] for at in order]
        more = self._memory(tails, 0)
        assert isinstance(more, PrefixMemory)
        more.stems = {number: stem for number, stem in enumerate(own) if stem is not None}
        trunks = {stem: StemTrunk(stem, more) for stem in own if stem is not None}
        logits = self._read_all(more, tails, [None if stem is None else trunks[stem] for stem in own])
        number = {at: len(self.memory.lengths) + place for place, at in enumerate(order)}
        self._grow(max(one.room for one in new))
        self.memory.add(more, [number[at] for at, one in enumerate(new) for _ in range(one.copies)])
        self.written += [[] for one in new for _ in range(one.copies)]
        self.prompts_of |= {number[at]: one.ids for at, one in enumerate(new)}
        self.read += sum(map(len, tails))
        self.reused = [0 if (stem := stems[at]) is None else stem.length for at in range(len(new))]
        known = sum(self.reused)
        ahead = min(self._ahead, known)
        self.shared, self._ahead = self.shared + known - ahead, self._ahead - ahead
        for at, tail in zip(order, tails, strict=True):
            if len(tail) >= WORTH:
                self._keep_prefix(number[at], None)
        places = [order.index(at) for at, one in enumerate(new) for _ in range(one.copies)]
        return logits[torch.tensor(places, device=logits.device)]

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, step: int = 0) -> Tensor:
        """See `JoinedRows`."""
        for written, token in zip(self.written, tokens.tolist(), strict=True):
            written.append(token)
        return super().next_logits(tokens, step)

    @torch.no_grad()
    def go_on(self, rows: Sequence[int], ended: Iterable[int] = ()) -> None:
        """See `JoinedRows`."""
        for row in ended:
            self._keep_prefix(self.memory.of_row[row], row)
        self.keep(torch.tensor(rows, dtype=torch.int64))
        self.written = [self.written[row] for row in rows]
        living = set(self.memory.of_row)
        self.prompts_of = {number: ids for number, ids in self.prompts_of.items() if number in living}

    def _begin_anew(self) -> None:
        """Nothing is left: the places that were set aside for long answers are given back."""
        made = self._memory([], 0)
        assert isinstance(made, PrefixMemory)
        self.memory = made
        self.memory.step = 0

    def _grow(self, room: int) -> None:
        needed = self.memory.step + room
        if needed > self.memory.places:
            self.memory.make_room(max(needed, self.memory.places * 3 // 2 if self.count else 0))

    def _keep_prefix(self, number: int, row: int | None) -> None:
        ids = [*self.prompts_of[number], *([] if row is None else self.written[row])]
        if self.prefixes.most_bytes and len(ids) >= BLOCK:
            states = self.memory.states_of(number, row)
            self.prefixes.keep(KeptPrefix(np.asarray(ids, dtype=np.int64), states))


class JoiningByHand(Joining, ByHand):
    """The same, stepped block by block."""


def _name(stem: Stem | None) -> tuple[int, int]:
    """Prompts of one stem stand side by side."""
    return (0, 0) if stem is None else (id(stem.prefix), stem.length)


class OneBatch:
    """For families that cannot share a memory: those that wait are answered together once all before them have ended.

    Args:
        lm, traits: of the model.
        most: rows at a time.
    """

    one_batch = True
    prefix_bytes = 0

    def __init__(self, lm: nn.Module, traits: Traits, most: int) -> None:
        self.lm, self.traits, self.most = lm, traits, most
        self.decoder: Decoder | None = None
        self.places: list[int] = []  # of the rows that go on among the decoder's
        self.width = self.step = 0
        self.read = self.shared = 0
        self.reused: list[int] = []

    @property
    def count(self) -> int:
        return len(self.places)

    @property
    def free(self) -> int:
        return 0 if self.places else self.most

    def together(self, waiting: Sequence[Newcomer]) -> list[int]:
        """See `JoinedRows`."""
        return list(range(len(waiting)))

    def read_ahead(self, new: Newcomer) -> bool:
        """See `JoinedRows`."""
        return False

    @torch.no_grad()
    def join(self, new: Sequence[Newcomer]) -> Tensor:
        """See `JoinedRows`."""
        assert not self.places, "the rows of a batch begin together"
        prompts = [one.ids for one in new for _ in range(one.copies)]
        self.decoder = make_decoder(self.lm, self.traits, prompts, 1, max(one.room for one in new))
        self.places, self.width, self.step = list(range(len(prompts))), len(prompts), 0
        self.read += sum(map(len, prompts))
        self.reused = [0] * len(new)
        return self.decoder.prompt_logits()

    @torch.no_grad()
    def next_logits(self, tokens: Tensor) -> Tensor:
        """See `JoinedRows`."""
        assert self.decoder is not None
        every = torch.zeros(self.width, dtype=torch.int64, device=tokens.device)
        at = torch.tensor(self.places, device=tokens.device)
        every[at] = tokens
        logits = self.decoder.next_logits(every, self.step)
        self.step += 1
        return logits[at]

    def go_on(self, rows: Sequence[int], ended: Iterable[int] = ()) -> None:
        """See `JoinedRows`; where the decoder cannot drop the others, they run on unseen."""
        self.places = [self.places[row] for row in rows]
        if not self.places:
            self.decoder = None
        elif self.decoder is not None and self.decoder.keep(torch.tensor(self.places)):
            self.width = len(self.places)
            self.places = list(range(self.width))
