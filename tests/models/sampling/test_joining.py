"""JoinedRows that come and go at any step say what each would say alone, whatever they share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from espalier.models.prefixes import BLOCK, KeptPrefix, Prefixes, Stem
from espalier.models.probe import probe
from espalier.models.sampling import joining
from espalier.models.sampling.joining import JoinedRows, Joining, JoiningByHand, Newcomer, OneBatch, make_rows

Tiny = Callable[..., nn.Module]
CONTEXT = [(7 * i) % 90 + 3 for i in range(5 * BLOCK + 3)]
ASKED = [
    (*CONTEXT, 5, 6, 7), (*CONTEXT, 8), (40,), (*CONTEXT[: 2 * BLOCK], 60, 61), (*CONTEXT, 5, 6, 7), (9, 9, 9),
    tuple(range(3, 3 + 3 * BLOCK)), (*CONTEXT, *range(30, 30 + 4 * BLOCK)),
]  # fmt: skip
ROOMS = [6, 3, 9, 1, 5, 12, 4, 7]


@torch.no_grad()
def said_alone(lm: nn.Module, ids: tuple[int, ...], room: int) -> list[int]:
    """A plain loop over the model's own code, without any cache."""
    written = list(ids)
    for _ in range(room):
        written.append(int(lm(input_ids=torch.tensor([written]), use_cache=False).logits[0, -1].argmax()))
    return written[len(ids) :]


def run(rows: JoinedRows, arrivals: dict[int, list[int]], copies: int = 1) -> dict[int, list[list[int]]]:
    """Greedy tokens of each prompt's copies, in the order of the rows; `arrivals` by step."""
    said: dict[int, list[list[int]]] = {n: [] for numbers in arrivals.values() for n in numbers}
    alive: list[tuple[int, list[int]]] = []
    waiting: list[int] = []
    logits = torch.zeros(0, 1)
    for step in range(100):
        waiting += arrivals.get(step, [])
        while waiting and rows.free:
            asked = [Newcomer(ASKED[n], copies, ROOMS[n]) for n in waiting]
            chosen = rows.together(asked)[: rows.free // copies]
            new = rows.join([asked[at] for at in chosen])
            logits = new if not alive else torch.cat([logits, new])
            for at in chosen:
                for _ in range(copies):
                    tokens: list[int] = []
                    said[waiting[at]].append(tokens)
                    alive.append((waiting[at], tokens))
            waiting = [n for at, n in enumerate(waiting) if at not in chosen]
        assert rows.count == len(alive)
        if not alive and step > max(arrivals):
            return said
        drawn = logits.argmax(-1)
        for (_, tokens), token in zip(alive, drawn.tolist(), strict=True):
            tokens.append(token)
        kept = [at for at, (number, tokens) in enumerate(alive) if len(tokens) < ROOMS[number]]
        if len(kept) < len(alive):
            rows.go_on(kept, [at for at in range(len(alive)) if at not in kept])
            alive = [alive[at] for at in kept]
        logits = rows.next_logits(drawn[kept]) if alive else logits
    raise AssertionError("it does not come to an end")


ARRIVALS = {0: [0, 1, 2], 1: [3], 2: [4, 5], 7: [6], 8: [7]}


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "glm", "opt", "bloom"])
@pytest.mark.parametrize("prefix_bytes", [0, 1 << 30])
def test_each_says_what_it_says_alone(tiny: Tiny, name: str, prefix_bytes: int) -> None:
    longer = {"bloom": {}, "gpt2": {"n_positions": 256}}.get(name, {"max_position_embeddings": 256})
    lm = tiny(name, **longer)
    rows = make_rows(lm, probe(lm), 200, 4, prefix_bytes)
    said = run(rows, ARRIVALS)
    for number, (tokens,) in said.items():
        assert tokens == said_alone(lm, ASKED[number], ROOMS[number]), (name, number)
    assert len({tuple(tokens) for (tokens,) in said.values()}) > 5, "answers that are alike compare nothing"
    kinds = {"llama": JoiningByHand, "qwen3": JoiningByHand, "bloom": OneBatch}
    assert type(rows) is kinds.get(name, Joining)
    sharing = bool(prefix_bytes) and not isinstance(rows, OneBatch)
    assert (rows.shared > 4 * BLOCK) == sharing
    assert rows.read + rows.shared == sum(map(len, ASKED))


def test_copies_of_a_prompt_stand_side_by_side(tiny: Tiny) -> None:
    lm = tiny("llama", max_position_embeddings=256)
    rows = make_rows(lm, probe(lm), 200, 8, 1 << 30)
    said = run(rows, ARRIVALS, copies=2)
    for number, both in said.items():
        assert both == [said_alone(lm, ASKED[number], ROOMS[number])] * 2


def test_what_a_conversation_has_said_is_not_read_again(tiny: Tiny) -> None:
    lm = tiny("llama", max_position_embeddings=256)
    rows = make_rows(lm, probe(lm), 200, 4, 1 << 30)
    assert isinstance(rows, Joining)
    first = Newcomer(tuple(CONTEXT[: 2 * BLOCK - 4]), 1, 9)
    logits = rows.join([first])
    answer = []
    for _ in range(8):
        answer.append(int(logits.argmax()))
        logits = rows.next_logits(torch.tensor(answer[-1:]))
    rows.go_on([], ended=[0])
    assert len(rows.prefixes) == 1
    before = rows.read
    again = (*first.ids, *answer, 50, 51, 52)
    logits = rows.join([Newcomer(again, 1, 4)])
    assert rows.read - before == len(again) - 2 * BLOCK
    assert int(logits.argmax()) == said_alone(lm, again, 1)[0]


def test_a_long_prompt_can_be_read_part_by_part(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama", max_position_embeddings=256)
    monkeypatch.setattr(joining, "AHEAD", 2 * BLOCK)
    long = Newcomer(ASKED[7], 1, 4)
    for prefix_bytes, parts in ((1 << 30, 4), (0, 0), (5_000, 0)):  # not kept, and no room for it
        rows = make_rows(lm, probe(lm), 200, 4, prefix_bytes)
        rows.join([Newcomer(ASKED[2], 1, 9)])
        before = rows.read
        assert [rows.read_ahead(long) for _ in range(parts + 1)] == [True] * parts + [False]
        assert rows.read - before == parts * 2 * BLOCK
        logits = rows.join([long])
        assert rows.read - before == len(long.ids) and rows.shared == 0
        assert int(logits.argmax()) == said_alone(lm, long.ids, 1)[0]


def test_places_for_answers_do_not_grow_without_end(tiny: Tiny) -> None:
    """Forty answers, one after the other, each of which begins before the one before it has ended."""
    lm = tiny("llama", max_position_embeddings=256)
    rows = make_rows(lm, probe(lm), 200, 2, 0)
    assert isinstance(rows, Joining)
    logits = rows.join([Newcomer(ASKED[0], 1, 10)])
    for _ in range(40):
        for _ in range(5):
            logits = rows.next_logits(logits.argmax(-1))
        if rows.count == 2:
            rows.go_on([1], [0])
            logits = logits[1:]
        logits = torch.cat([logits, rows.join([Newcomer(ASKED[1], 1, 10)])])
    assert rows.memory.places <= 30
    assert len(rows.prompts_of) == 2 and len(rows.written) == 2


def kept(ids: range) -> KeptPrefix:
    states = [(torch.zeros(1, 1, len(ids), 2), torch.zeros(1, 1, len(ids), 2))]
    return KeptPrefix(np.arange(ids.start, ids.stop), states)


def test_prefixes_are_bounded_and_the_least_used_goes() -> None:
    one = kept(range(0, 32))
    prefixes = Prefixes(3 * one.bytes)
    for start in (0, 100, 200):
        prefixes.keep(kept(range(start, start + 32)))
    assert prefixes.stem([*range(0, 32), 7]) is not None  # used, so it stays
    prefixes.keep(kept(range(300, 332)))
    assert prefixes.bytes == 3 * one.bytes and len(prefixes) == 3
    assert [prefixes.stem([*range(s, s + 32), 7]) is None for s in (0, 100, 200, 300)] == [
        False,
        True,
        False,
        False,
    ]
    prefixes.keep(kept(range(0, 64)))  # its own beginning goes
    assert prefixes.bytes <= prefixes.most_bytes
    stem = prefixes.stem([*range(0, 50), 7])
    assert stem is not None and len(stem.prefix.ids) == 64 and stem.length == 48
    prefixes.keep(kept(range(0, 32)))  # known already
    assert stem == prefixes.stem([*range(0, 50), 7])
    prefixes.keep(kept(range(0, 6400)))  # larger than all that may be kept
    assert prefixes.bytes <= prefixes.most_bytes


def test_a_stem_that_rows_have_is_taken_where_it_is_about_as_long() -> None:
    prefixes = Prefixes(1 << 20)
    prefixes.keep(kept(range(0, 64)))
    living = Stem(kept(range(0, 48)), 48)
    assert prefixes.stem([*range(0, 64), 7], [living]) == living
    shorter = Stem(kept(range(0, 32)), 32)
    found = prefixes.stem([*range(0, 64), 7], [shorter])
    assert found is not None and found.length == 64
    assert prefixes.stem([*range(0, BLOCK)]) is None, "the last token is to be read"
