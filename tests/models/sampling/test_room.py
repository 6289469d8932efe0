"""How many answers at a time: the bound against the memory that sampling really takes, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from espalier.errors import UserError
from espalier.models.forward import Traits
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample
from espalier.models.sampling.room import bytes_of_answer, bytes_of_reading, room_for, to_come

Tiny = Callable[..., nn.Module]


def peak(run: Callable[[], object]) -> int:
    """The most bytes of tensors at a time, above those that there were, by the allocations one after the other."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    held = most = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize(("name", "copies"), [("llama", 1), ("llama", 8), ("bloom", 2)])
def test_sampling_stays_within_what_is_said_and_uses_a_good_part_of_it(
    tiny: Tiny, name: str, copies: int
) -> None:
    lm = tiny(name, vocab_size=3000)
    traits = probe(lm)
    prompts = [[5 + i, *range(20, 180)] for i in range(48 // copies)]
    form = Sampling(24, top_p=0.9, stop=tuple(range(100)))
    sample(lm, traits, prompts, form, copies=copies, rows=16)
    taken = peak(lambda: sample(lm, traits, prompts, form, copies=copies, rows=16))
    row = bytes_of_answer(lm, traits, 161, 24, copies)
    said = 16 * row + bytes_of_reading(lm)
    assert 0.2 * said < taken < said, (taken, said)
    # Keys and values of an answer, and its share of the prompt's, are in it: more of either is more.
    assert row < bytes_of_answer(lm, traits, 161, 48, copies)
    assert row < bytes_of_answer(lm, traits, 400, 24, copies)
    assert (bytes_of_answer(lm, traits, 161, 24, 8) < row) == (name == "llama" and copies == 1)


def room(lm: nn.Module, traits: Traits, asked: int | None, free: int, copies: int = 4) -> Any:
    return room_for(lm, traits, (100, 50), copies, asked, free)


def test_rows_follow_the_memory_and_what_cannot_fit_is_refused_with_numbers(tiny: Tiny) -> None:
    lm = tiny("llama", vocab_size=3000)
    traits = probe(lm)
    reading, row = bytes_of_reading(lm), bytes_of_answer(lm, traits, 100, 50, 4)
    assert room(lm, traits, None, 10**12).rows == 256
    assert room(lm, traits, None, reading + 2 * 40 * row).rows == 32, "half of what is free, a power of two"
    assert room(lm, traits, 40, reading + 40 * row).rows == 40, "all of what is free where it was asked for"
    with pytest.raises(
        UserError, match=r"generation_batch_size 41: 41 answers .* 100 \+ 50 .*40 at most"
    ) as told:
        room(lm, traits, 41, reading + 40 * row)
    assert len(re.findall(r"\d+\.\d\d [MG]B", str(told.value))) == 2 and "max_new_tokens" in str(told.value)
    with pytest.raises(UserError, match=r"(?s)1 answers at a time.*generation_batch_size: 1"):
        room(lm, traits, None, reading + row)
    with pytest.raises(UserError, match="no number would do"):
        room(lm, traits, 3, 1000)
    text = str(room(lm, traits, 40, reading + 40 * row))
    assert text.startswith("40 answers are sampled at a time: at most ") and "that are free" in text


def test_batch_by_batch_the_answers_to_a_prompt_go_together(tiny: Tiny) -> None:
    lm = tiny("bloom", vocab_size=3000)
    traits = probe(lm)
    row = bytes_of_answer(lm, traits, 100, 50, 4)
    assert room(lm, traits, 2, 10**12).rows == 4
    with pytest.raises(UserError, match="generation_batch_size 2: 4 answers"):
        room(lm, traits, 2, bytes_of_reading(lm) + 3 * row)


def test_what_training_takes_later_is_not_counted_as_free(tiny: Tiny) -> None:
    lm = tiny("llama")
    count = sum(p.numel() for p in lm.parameters())
    assert to_come([lm, lm]) == 12 * count, "shared weights once"
    assert to_come([lm.requires_grad_(False)]) == 0
    assert torch.is_grad_enabled()
