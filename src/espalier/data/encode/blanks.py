"""Blank filling, as GLM is pretrained: spans are taken out of a text, and the model writes them behind it.

A text ``你 好 世 界 。`` of which ``好`` and ``界 。`` are taken out, as it is laid out (Du et al. 2022, figure 2)::

    ids       [CLS] 你 [MASK] 世 [MASK]  <sop> 界 。 <eop>  <sop> 好 <eop>
    trained     .   .    .    .    .       .   x  x    x      .   x    x
    blank                                      4  4    4          2    2

Part A, the text with its blanks, is read both ways; part B, the spans in random order, is learned causally. `blank` is
the place of the blank that a trained token fills, which is the position of the token that it is read at.

Of a piece of a text only one kind of span is taken out, drawn by `BlankFilling.shares`:

- short ones for [MASK], of lengths from a Poisson distribution with mean 3 (0 is drawn again), until 15 % of the
  tokens are taken; a token at least is left between two of them (section 2.1);
- whole sentences for [sMASK], drawn until they are 15 % (section 2.2); a piece of a single sentence gets short spans;
- one span for [gMASK], which reaches to the end and has 50 % to 100 % of the tokens (section 2.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from espalier.data.encode.encoding import Path

MEAN_LENGTH = 3
"""Tokens of a short span, before those of length 0 are drawn again."""
TAKEN = 0.15
"""The share of the tokens that short spans, or sentences, have together at least."""
LEAST = 8
"""The fewest tokens of a row into which a text with a blank, its span and their marks can be put."""

SHORT, SENTENCE, DOCUMENT = range(3)
Spans = list[tuple[int, int]]
"""From and up to but not including, in the order of the text."""

_BEGINNING = 4096
"""Characters of a text by which its draws are told from those of others."""
_ENDS = tuple("。！？!?；;….\n")
_LINE_BREAKS = ("<n>", "\n", "Ċ")


@dataclass(frozen=True)
class BlankFilling:
    """How the pieces of a text are turned into blanks and spans.

    Attributes:
        before: id that stands before every text; None: nothing.
        marks: ids of the blanks of short spans, sentences and a document's end.
        start, end: ids before and behind each span.
        shares: weights of the three kinds, none below 0.
        seed: with a text's beginning and the number of the piece it decides everything.
        sentence_ends: ids of tokens that end a sentence.
    """

    before: int | None
    marks: tuple[int, int, int]
    start: int
    end: int
    shares: tuple[float, float, float]
    seed: int
    sentence_ends: frozenset[int] = frozenset()

    @property
    def described(self) -> list[Any]:
        """What it is, as JSON, but for what follows from the tokenizer."""
        return [self.before, list(self.marks), self.start, self.end, list(self.shares), self.seed]


def sentence_ends(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that end with a mark that ends a sentence, or are a line break."""
    return frozenset(
        number
        for token, number in tokenizer.get_vocab().items()
        if token in _LINE_BREAKS or token.strip("▁ ").endswith(_ENDS)
    )


def blanked(
    stretches: Iterable[list[int]], text: str, blanks: BlankFilling, cutoff_len: int, end_of_text: int | None
) -> Iterator[tuple[Path, list[int]]]:
    """A text in pieces of at most `cutoff_len` tokens with blanks, and `BLANK` of each piece's trained tokens.

    Each token of the text is in one piece, once.

    Args:
        stretches: the ids of the text.
        text: the same as characters; its beginning tells it from others, for the seed.
        cutoff_len: at least `LEAST`.
        end_of_text: id that is put behind a text and is one of its tokens then; not where it is the one that ends spans.
    """
    assert cutoff_len >= LEAST
    digest = hashlib.blake2b(text[:_BEGINNING].encode("utf-8", "replace"), digest_size=8).digest()
    seed, number = [blanks.seed, int.from_bytes(digest, "big")], 0
    room = cutoff_len - (blanks.before is not None) - 3
    pending: list[int] = []
    ended = [end_of_text] if end_of_text is not None and end_of_text != blanks.end else []
    for stretch in chain(stretches, [ended]):
        if stretch is ended and not (pending or number):
            break  # a text without a token
        pending += stretch
        start = 0
        while len(pending) - start > room:
            ids, spans, kind = _piece(pending[start : start + room], blanks, cutoff_len, [*seed, number])
            yield _laid_out(ids, spans, kind, blanks, [*seed, number])
            start, number = start + len(ids), number + 1
        pending = pending[start:]
    while pending:
        ids, spans, kind = _piece(pending[:room], blanks, cutoff_len, [*seed, number])
        yield _laid_out(ids, spans, kind, blanks, [*seed, number])
        pending, number = pending[len(ids) :], number + 1


def _piece(
    ids: list[int], blanks: BlankFilling, cutoff_len: int, seed: list[int]
) -> tuple[list[int], Spans, int]:
    """The longest beginning that fits with its marks, the spans that are taken out of it, and of which kind."""
    kind = _kind(blanks, seed)
    while True:
        spans, found = draw_spans(ids, kind, blanks, np.random.default_rng([*seed, 1]))
        excess = len(ids) + (blanks.before is not None) + 3 * len(spans) - cutoff_len
        if excess <= 0:
            return ids, spans, found
        ids = ids[: len(ids) - excess]  # the same draws over fewer tokens: fewer spans


def _kind(blanks: BlankFilling, seed: list[int]) -> int:
    weights = np.array(blanks.shares, float)
    return int(np.random.default_rng([*seed, 0]).choice(3, p=weights / weights.sum()))


def draw_spans(
    ids: Sequence[int], kind: int, blanks: BlankFilling, draws: np.random.Generator
) -> tuple[Spans, int]:
    """Spans of a kind, and the kind: short ones where whole sentences cannot be told apart."""
    if kind == DOCUMENT:
        length = int(draws.integers((len(ids) + 1) // 2, len(ids) + 1))
        return [(len(ids) - length, len(ids))], DOCUMENT
    if kind == SENTENCE:
        sentences = _sentences(ids, blanks.sentence_ends)
        if len(sentences) > 1:
            return _some(sentences, TAKEN * len(ids), draws), SENTENCE
    return _short(len(ids), draws), SHORT


def _sentences(ids: Sequence[int], ends: frozenset[int]) -> Spans:
    spans, start = [], 0
    for at, token in enumerate(ids):
        following = ids[at + 1] if at + 1 < len(ids) else None
        if token in ends and following not in ends:
            spans.append((start, at + 1))
            start = at + 1
    return [*spans, (start, len(ids))] if start < len(ids) else spans


def _some(sentences: Spans, wanted: float, draws: np.random.Generator) -> Spans:
    chosen: Spans = []
    for at in draws.permutation(len(sentences)):
        if sum(stop - start for start, stop in chosen) >= wanted:
            break
        chosen.append(sentences[at])
    return sorted(chosen)


def _short(count: int, draws: np.random.Generator) -> Spans:
    """Spans of `count` tokens, at places that are all alike likely."""
    lengths: list[int] = []
    while sum(lengths) < TAKEN * count:
        length = 0
        while length == 0:
            length = int(draws.poisson(MEAN_LENGTH))
        # A token is left between two spans, so the last one may be too long for a very short text.
        lengths.append(min(length, count - sum(lengths) - len(lengths)))
    kept = count - sum(lengths)
    # Each span stands in a gap of its own between (or beside) the tokens that are left.
    gaps = np.sort(draws.choice(kept + 1, len(lengths), replace=False))
    spans, taken = [], 0
    for gap, length in zip(gaps.tolist(), lengths, strict=True):
        spans.append((gap + taken, gap + taken + length))
        taken += length
    return spans


def _laid_out(
    ids: list[int], spans: Spans, kind: int, blanks: BlankFilling, seed: list[int]
) -> tuple[Path, list[int]]:
    """Part A and, in random order, the spans of part B."""
    row = [] if blanks.before is None else [blanks.before]
    places, last = [], 0
    for start, stop in spans:
        row += ids[last:start]
        places.append(len(row))
        row.append(blanks.marks[kind])
        last = stop
    row += ids[last:]
    flags = [False] * len(row)
    filled: list[int] = []
    for at in np.random.default_rng([*seed, 2]).permutation(len(spans)):
        start, stop = spans[at]
        row += [blanks.start, *ids[start:stop], blanks.end]
        flags += [False] + [True] * (stop - start + 1)
        filled += [places[at]] * (stop - start + 1)
    return (row, flags), filled
