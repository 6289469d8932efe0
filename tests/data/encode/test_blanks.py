"""Texts with blanks: every token once, the shares and lengths of the paper, the same again, none too long."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from espalier.data.encode.blanks import (
    DOCUMENT,
    LEAST,
    SENTENCE,
    SHORT,
    BlankFilling,
    blanked,
    draw_spans,
    sentence_ends,
)

CLS, MASK, SMASK, GMASK, SOP, EOP, EOS = range(1000, 1007)
STOP = 7
"""Ends a sentence."""
BLANKS = BlankFilling(CLS, (MASK, SMASK, GMASK), SOP, EOP, (0.5, 0.3, 0.2), 3, frozenset({STOP}))


def text(count: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, 60, count)]


def rebuilt(row: list[int], flags: list[bool], places: list[int]) -> list[int]:
    """The text again: each span back at its blank; what is no token of it must be a mark at its place."""
    end = row.index(SOP)
    assert not any(flags[:end])
    spans: dict[int, list[int]] = {}
    read = iter(places)
    at = end
    while at < len(row):
        assert row[at] == SOP and not flags[at]
        stop = row.index(EOP, at)
        assert all(flags[at + 1 : stop + 1])
        (place,) = {next(read) for _ in range(stop - at)}
        assert place not in spans, "a blank is filled once"
        spans[place] = row[at + 1 : stop]
        at = stop + 1
    assert next(read, None) is None
    whole = []
    assert row[0] == CLS
    for place, token in enumerate(row[1:end], start=1):
        assert (token in (MASK, SMASK, GMASK)) == (place in spans)
        whole += spans.get(place, [token])
    return whole


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17, 60, 1000])
@pytest.mark.parametrize("cutoff", [LEAST, 13, 64, 5000])
def test_every_token_of_a_text_is_there_once(count: int, cutoff: int) -> None:
    ids, cut = text(count), count // 3
    pieces = list(blanked([ids[:cut], ids[cut:]], f"text {count}", BLANKS, cutoff, EOS))
    assert [t for (row, flags), places in pieces for t in rebuilt(row, flags, places)] == [*ids, EOS]
    assert max(len(row) for (row, _), _ in pieces) <= cutoff
    # How the text comes in stretches decides nothing.
    assert list(blanked([ids], f"text {count}", BLANKS, cutoff, EOS)) == pieces


def test_rows_are_filled() -> None:
    pieces = list(blanked([text(20000)], "long", BLANKS, 512, None))
    lengths = [len(row) for (row, _), _ in pieces[:-1]]
    assert np.mean(lengths) > 0.97 * 512


def test_no_text_no_piece() -> None:
    assert not list(blanked([], "", BLANKS, 64, EOS))
    assert not list(blanked([[], []], "", BLANKS, 64, EOS))


def test_the_token_that_ends_spans_ends_no_text() -> None:
    (((row, flags), places),) = blanked([[5, 6]], "x", BLANKS, 64, EOP)
    assert rebuilt(row, flags, places) == [5, 6]


def test_seeds_decide() -> None:
    ids = text(300)
    first, again = (list(blanked([ids], "one", BLANKS, 64, None)) for _ in range(2))
    assert first == again
    assert first != list(blanked([ids], "one", replace(BLANKS, seed=4), 64, None))
    assert first != list(blanked([ids], "two", BLANKS, 64, None))


def test_shares_of_the_kinds() -> None:
    """Of 3,000 texts, within 4 standard errors of a share (binomial)."""
    count, found = 3000, {MASK: 0, SMASK: 0, GMASK: 0}
    ids = [5, STOP] * 10
    for number in range(count):
        (((row, _), _),) = blanked([ids], str(number), BLANKS, 256, None)
        (mark,) = {token for token in row if token in found}
        found[mark] += 1
    for mark, share in zip((MASK, SMASK, GMASK), BLANKS.shares, strict=True):
        error = math.sqrt(share * (1 - share) / count)
        assert abs(found[mark] / count - share) < 4 * error


def test_short_spans_have_the_lengths_and_the_share_of_the_paper() -> None:
    """Poisson with mean 3 but for 0: mean 3 / (1 - e^-3), second moment 12 / (1 - e^-3); 15 % and at most one more."""
    ids, lengths, shares = text(400), [], []
    for seed in range(150):
        spans, kind = draw_spans(ids, SHORT, BLANKS, np.random.default_rng(seed))
        assert kind == SHORT
        assert all(a[1] < b[0] for a, b in pairwise(spans)), "a token is left between two spans"
        assert spans[0][0] >= 0 and spans[-1][1] <= 400
        lengths += [stop - start for start, stop in spans]
        shares.append(sum(stop - start for start, stop in spans))
    at_least_one = 1 - math.exp(-3)
    mean, second = 3 / at_least_one, 12 / at_least_one
    # Drawing until 60 tokens are taken meets long spans more often, by less than one span's worth in 19.
    error = math.sqrt((second - mean**2) / len(lengths))
    assert abs(np.mean(lengths) - mean) < 4 * error + (second / mean - mean) / 19
    assert {1, 2, 3, 4, 5, 6} <= set(lengths) and min(lengths) == 1
    # The last span passes 60 by its renewal overshoot, (E L^2 / E L - 1) / 2 on average, and 0 to L - 1 each.
    overshoot = (second / mean - 1) / 2
    assert min(shares) >= 60
    assert abs(np.mean(shares) - 60 - overshoot) < 4 * np.std(shares) / math.sqrt(150)


def test_places_of_short_spans_are_alike_likely() -> None:
    """How often each place is taken: its share is the mean share, within 5 standard errors, but for the two ends."""
    taken, rounds = np.zeros(40), 4000
    for seed in range(rounds):
        for start, stop in draw_spans(text(40), SHORT, BLANKS, np.random.default_rng(seed))[0]:
            taken[start:stop] += 1
    inner = taken[8:-8] / rounds
    assert abs(inner - inner.mean()).max() < 5 * math.sqrt(inner.mean() / rounds)


def test_sentences_are_whole() -> None:
    ids = text(200)
    starts = {0, *(at + 1 for at, token in enumerate(ids) if token == STOP)}
    ends = {at + 1 for at, token in enumerate(ids) if token == STOP} | {200}
    for seed in range(50):
        spans, kind = draw_spans(ids, SENTENCE, BLANKS, np.random.default_rng(seed))
        assert kind == SENTENCE
        assert all(start in starts and stop in ends for start, stop in spans)
        sizes = [stop - start for start, stop in spans]
        assert sum(sizes) >= 30 > sum(sizes) - max(sizes), "until there are enough, and no more"
    spans, kind = draw_spans([1, 2, 3, 4, STOP], SENTENCE, BLANKS, np.random.default_rng(0))
    assert kind == SHORT, "one sentence alone"


def test_a_document_span_reaches_to_the_end_with_half_of_it_or_more() -> None:
    lengths = []
    for seed in range(600):
        ((start, stop),), kind = draw_spans(text(40), DOCUMENT, BLANKS, np.random.default_rng(seed))
        assert kind == DOCUMENT and stop == 40
        lengths.append(stop - start)
    assert set(lengths) == set(range(20, 41))
    assert abs(np.mean(lengths) - 30) < 4 * math.sqrt((21**2 - 1) / 12 / 600)


def test_spans_come_in_random_order() -> None:
    """Two spans are the other way round half of the time."""
    swapped = total = 0
    for number in range(400):
        (((_, _), places),) = blanked([text(20)], str(number), replace(BLANKS, shares=(1, 0, 0)), 64, None)
        order = list(dict.fromkeys(places))
        if len(order) == 2:
            total, swapped = total + 1, swapped + (order[0] > order[1])
    assert total > 100 and abs(swapped / total - 0.5) < 4 * 0.5 / math.sqrt(total)


def test_which_tokens_end_sentences() -> None:
    class Some:
        @staticmethod
        def get_vocab() -> dict[str, Any]:
            return {"▁好": 1, "。": 2, "end.": 3, "<n>": 4, "▁!": 5, "a.b": 6}

    assert sentence_ends(Some) == {2, 3, 4, 5}
