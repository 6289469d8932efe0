"""MinHash with bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3): which texts may be alike.

Two texts agree in one place of their signatures with the probability of their Jaccard similarity. Signatures are
cut into bands, and texts that agree in a whole band are candidates, to be compared exactly by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from espalier.corpora.clean.shingles import Numbers
from espalier.data.choice.choose import mixed

PLACES = 128
"""The longest signature."""
RECALL = 0.99
"""Which share of the pairs at exactly the threshold must become candidates."""
NEIGHBOURS = 8
"""With how many others of a band's bucket a text is compared: half of them the bucket's first, half the latest."""

Signatures = npt.NDArray[np.uint32]
Texts = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.int64]


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows a band): the longest bands that still find `RECALL` of the pairs at the threshold.

    >>> bands_for(0.8)
    (21, 6)
    """
    for rows in range(32, 1, -1):
        bands = PLACES // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PLACES, 1


class Signer:
    """Makes signatures of `places` numbers; `seed` chooses the hash functions.

    A hash function is x -> odd * x + plus in 32 bits, on numbers that are well mixed already: half as wide as what is
    usual, which numpy does several times as fast.
    """

    def __init__(self, places: int, seed: int = 1) -> None:
        draw = np.random.default_rng(seed)
        self._odd = draw.integers(0, 2**31, (places, 1), dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        self._plus = draw.integers(0, 2**32, (places, 1), dtype=np.uint32)

    def sign(self, shingles: Numbers) -> Signatures:
        """(places,) for the shingles (n,) of one text, n > 0."""
        marks = (shingles >> np.uint64(32)).astype(np.uint32)
        lowest = np.full(len(self._odd), np.iinfo(np.uint32).max, np.uint32)
        for start in range(0, len(marks), 512):  # so that a piece stays in the cache
            piece = marks[None, start : start + 512] * self._odd
            piece += self._plus
            np.minimum(lowest, piece.min(axis=1), out=lowest)
        return lowest


def band_keys(signatures: Signatures, bands: int, rows: int) -> Iterator[Numbers]:
    """For each band, a number (N,) for what each row of `signatures` (N, bands * rows) has in it."""
    for band in range(bands):
        key = np.zeros(len(signatures), np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            place = signatures[:, column].astype(np.uint64)
            key = mixed(key * np.uint64(0x9E3779B97F4A7C15) + place + np.uint64(1))
        yield key


def candidates(keys: Iterable[Numbers]) -> Pairs:
    """(P, 2) of (later, earlier) texts that have a band's key in common, sorted, each once; `keys`: (N,) of each band.

    Of a bucket of many, each is paired with `NEIGHBOURS` others only, so P is at most N * bands * `NEIGHBOURS`.
    """
    codes = []
    for key in keys:
        order = np.argsort(key, kind="stable")  # stable: a bucket keeps the order of its texts
        ordered = key[order]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        inside = np.flatnonzero(~new)  # all but the first of each bucket; most buckets hold one text
        starts = np.flatnonzero(new)[np.cumsum(new)[inside] - 1]
        for step in range(1, NEIGHBOURS // 2 + 1):
            near = inside - step >= starts
            codes.append(_codes(order[inside[near]], order[inside[near] - step]))
        for step in range(NEIGHBOURS // 2):
            far = starts + step < inside - NEIGHBOURS // 2
            codes.append(_codes(order[inside[far]], order[starts[far] + step]))
    return _pairs(codes)


def across(keys: Iterable[Numbers], few: Texts) -> Pairs:
    """(P, 2) of (text, text of `few`) that have a band's key in common, sorted, each once; of a bucket `NEIGHBOURS`.

    `few` (F,) are the numbers of some of the N texts; they are in the first column too.
    """
    codes = []
    for key in keys:
        order = few[np.argsort(key[few], kind="stable")]
        ordered = key[order]
        place = np.searchsorted(ordered, key, "left")
        there = np.flatnonzero(ordered[np.minimum(place, len(few) - 1)] == key) if len(few) else place[:0]
        first, behind = place[there], np.searchsorted(ordered, key[there], "right")
        for step in range(NEIGHBOURS):
            more = first + step < behind
            codes.append(_codes(there[more], order[first[more] + step]))
    return _pairs(codes)


def _codes(one: Texts, other: Texts) -> npt.NDArray[np.int64]:
    return np.unique((one << 32) | other)


def _pairs(codes: list[npt.NDArray[np.int64]]) -> Pairs:
    whole = np.unique(np.concatenate([np.zeros(0, np.int64), *codes]))
    return np.stack([whole >> 32, whole & 0xFFFFFFFF], axis=1)
