"""Rows that take the places of those that have ended: the same answers, a full batch, each prompt read once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from espalier.models import grouping
from espalier.models.memory import Memory
from espalier.models.probe import probe
from espalier.models.sampling.decoding import ByMemory, span, takes_rows
from espalier.models.sampling.generate import KEPT, Completion, Sampling, draw, sample

Tiny = Callable[..., nn.Module]
STOP = tuple(range(3, 16))
"""One in seven tokens or so: answers of very different lengths."""


def prompts_of(count: int, seed: int = 0) -> list[list[int]]:
    pick = random.Random(seed)
    return [[pick.randrange(16, 99) for _ in range(pick.choice((1, 3, 9, 30)))] for _ in range(count)]


def said(found: list[list[Completion]]) -> list[list[list[int]]]:
    return [[answer.tokens for answer in answers] for answers in found]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For how many rows tokens were drawn at each step."""
    sizes: list[int] = []

    def spied(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        sizes.append(len(logits))
        return draw(logits, uniforms, sampling)

    monkeypatch.setattr("espalier.models.sampling.generate.draw", spied)
    return sizes


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that were read, one by one."""
    seen: list[list[int]] = []
    plain = ByMemory._read

    def spied(self: ByMemory, memory: Memory, prompts: Sequence[Sequence[int]], trunk: None) -> Tensor:
        seen.extend(list(prompt) for prompt in prompts)
        return plain(self, memory, prompts, trunk)

    monkeypatch.setattr(ByMemory, "_read", spied)
    return seen


@pytest.mark.parametrize(("name", "copies", "call"), [("llama", 1, 200), ("llama", 3, 1), ("gpt2", 3, 5)])
def test_tokens_are_the_same_whatever_the_batch_and_who_is_beside(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, drawn: list[int], name: str, copies: int, call: int
) -> None:
    monkeypatch.setitem(grouping.CALL, "cpu", call)  # few groups and cohorts, or many
    lm = tiny(name)
    traits = probe(lm)
    prompts, seeds = prompts_of(13), list(range(100, 113))
    form = Sampling(10, stop=STOP)
    truth = [
        sample(lm, traits, [prompt], form, copies=copies, seeds=[seed])[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert len({len(answer.tokens) for answers in truth for answer in answers}) > 5
    for rows in (1, 3, 64):
        drawn.clear()
        found = sample(lm, traits, prompts, form, copies=copies, seeds=seeds, rows=rows)
        assert said(found) == said(truth)
        assert max(drawn) == min(rows, 13 * copies), "rows are bounded, below the copies of one prompt too"
        for answers, right in zip(found, truth, strict=True):
            for answer, wanted in zip(answers, right, strict=True):
                torch.testing.assert_close(
                    torch.tensor(answer.logprobs), torch.tensor(wanted.logprobs), rtol=0, atol=1e-5
                )
                assert answer.ended == wanted.ended
    others = [*prompts_of(5, 1), *prompts[4:7], *prompts_of(5, 2)]
    beside = [*range(5), *seeds[4:7], *range(5)]
    mixed = sample(lm, traits, others, form, copies=copies, seeds=beside, rows=5)
    assert said(mixed[5:8]) == said(truth[4:7])


@pytest.mark.parametrize("copies", [1, 4])
def test_the_batch_stays_full_until_nothing_waits_and_a_prompt_is_read_once(
    tiny: Tiny, drawn: list[int], read: list[list[int]], copies: int
) -> None:
    lm = tiny("llama")
    prompts = prompts_of(80 // copies)
    found = sample(lm, probe(lm), prompts, Sampling(40, stop=STOP), copies=copies, rows=10)
    assert sorted(read) == sorted(prompts)
    written = sum(len(answer.tokens) for answers in found for answer in answers)
    # Nothing waits in the last steps, of which an answer has 40 at most; before them no more than KEPT is left open.
    before = drawn[: len(drawn) - 39]
    assert len(before) > 20 and set(before) <= {9, 10}
    assert min(before) >= KEPT * 10
    assert sum(drawn) < 1.3 * written, "rows that have ended are stepped"


def test_places_do_not_run_out_however_long_it_goes_on(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    traits = probe(lm)
    places: list[int] = []
    plain = Memory.attend

    def spied(self: Memory, *given: object) -> Tensor:
        places.append(self.step)
        assert self.step < self.places
        return plain(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Memory, "attend", spied)
    monkeypatch.setattr("espalier.models.sampling.generate.KEPT", 0.3)  # rows are dropped late
    form = Sampling(9, stop=STOP)
    prompts = prompts_of(40)
    found = sample(lm, traits, prompts, form, rows=8)
    assert max(places) > 9, "no row began so late that places were given up"
    assert max(places) < span(9)
    monkeypatch.undo()
    assert said(found) == said(sample(lm, traits, prompts, form, rows=40))


def test_a_prompt_too_long_for_a_window_does_not_hold_the_others_back(tiny: Tiny, drawn: list[int]) -> None:
    lm = tiny("mistral", sliding_window=24)
    traits = probe(lm)
    prompts = prompts_of(12)
    fits = [len(prompt) + 8 <= 24 for prompt in prompts]
    assert 2 < sum(fits) < 10
    assert [takes_rows(lm, traits, len(prompt) + 8) for prompt in prompts] == fits
    form = Sampling(8, stop=STOP)
    found = sample(lm, traits, prompts, form, rows=2)
    assert max(drawn) == 2
    alone = [sample(lm, traits, [prompt], form, seeds=[i])[0] for i, prompt in enumerate(prompts)]
    assert said(found) == said(alone)


def test_in_bfloat16_logprobs_stay_near_a_forward_in_bfloat16(tiny: Tiny) -> None:
    """Tokens may differ between batches there, since rounding does; what was drawn must still be what is said of it."""
    lm = tiny("llama").to(torch.bfloat16)
    traits = probe(lm)
    prompts = prompts_of(12)
    found = sample(lm, traits, prompts, Sampling(10, stop=STOP), copies=2, rows=5)
    for prompt, answers in zip(prompts, found, strict=True):
        for answer in answers:
            ids = torch.tensor([prompt + answer.tokens])
            with torch.no_grad():
                logits = lm(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            truth = logits.float().log_softmax(-1).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(answer.logprobs), truth, rtol=0, atol=0.1)


def test_rows_that_come_and_go_attend_as_one_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against plain attention over each row's prompt and answer, with random comings and goings."""
    monkeypatch.setitem(grouping.CALL, "cpu", 3)
    kinds, share, size, most = 2, 3, 4, 6
    pick, maker = random.Random(5), torch.Generator().manual_seed(5)
    device = torch.device("cpu")

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=maker)

    def fresh(lengths: list[int], copies: int) -> tuple[Memory, list[tuple[Tensor, Tensor]]]:
        memory = Memory(1, lengths, copies, 40, torch.float32, device, most)
        memory.reading = (0, len(lengths))
        row = some(2, 1, kinds, sum(lengths), size)
        memory.layers[0].update(*row)
        return memory, list(zip(*(t[0].split(lengths, 1) for t in row), strict=True))

    memory, texts = fresh([7, 5, 2], 2)
    memory.step = 0
    rows = [(prompt, [*texts[prompt]]) for prompt in (0, 0, 1, 1, 2, 2)]
    seen: set[tuple[int, int]] = set()
    for step in range(30):
        query, key, value = some(len(rows), kinds * share, 1, size), *some(2, len(rows), kinds, 1, size)
        held = memory.layers[0].update(key, value)
        out = memory.attend(query, *held, 0.5)
        assert memory.positions().tolist() == [text[0].shape[1] for _, text in rows]
        for i, (_, text) in enumerate(rows):
            text[:] = [torch.cat(pair, 1) for pair in zip(text, (key[i], value[i]), strict=True)]
            keys, values = (x.repeat_interleave(share, 0) for x in text)
            weights = torch.einsum("hd,htd->ht", query[i, :, 0], keys * 0.5).softmax(-1)
            truth = torch.einsum("ht,htd->hd", weights, values)
            torch.testing.assert_close(out[i, :, 0], truth, rtol=1e-5, atol=1e-5)
        seen.add((len(memory.groups), len(memory.cohorts)))
        memory.step += 1
        if step % 3 == 2:
            last = len(memory.lengths) - 1
            kept = sorted(pick.sample(range(len(rows)), min(len(rows), pick.choice((0, 3, 4)))))
            memory.keep(torch.tensor(kept, dtype=torch.int64), last)
            rows = [rows[i] for i in kept]
            more, new = fresh(pick.choice(([30], [3, 3], [9, 1, 20])), 0)
            of_row = [last, *(last + 1 + n for n in range(len(new)))][: most - len(rows)]
            texts += new
            memory.add(more, of_row)
            rows += [(prompt, [*texts[prompt]]) for prompt in of_row]
    assert len(seen) > 3 and max(groups for groups, _ in seen) > 2 and max(times for _, times in seen) > 2
