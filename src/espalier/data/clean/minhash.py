"""MinHash with bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3): which texts may be alike.

Two texts agree in one place of their signatures with the probability of their Jaccard similarity. Signatures are
cut into bands, and texts that agree in a whole band are candidates, to be compared exactly by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from espalier.data.clean.shingles import Numbers, mixed

PLACES = 128
"""The longest signature."""
RECALL = 0.99
"""Which share of the pairs at exactly the threshold must become candidates."""
NEIGHBOURS = 16
"""With how many others of a band's bucket a text is compared: half of them the bucket's first, half the latest."""

Signatures = npt.NDArray[np.uint32]


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
        part = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows]).astype(np.uint64)
        key = np.zeros(len(part), np.uint64)
        for column in range(rows):
            key = mixed(key * np.uint64(0x9E3779B97F4A7C15) + part[:, column] + np.uint64(1))
        yield key


def candidates(signatures: Signatures, bands: int, rows: int) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) of rows of `signatures` (N, bands * rows) that agree in a band; a pair may come again."""
    for key in band_keys(signatures, bands, rows):
        order = np.argsort(key, kind="stable")
        same = np.flatnonzero(key[order][1:] == key[order][:-1])
        if not len(same):
            continue
        starts = same[np.flatnonzero(np.diff(same, prepend=-2) != 1)]
        ends = same[np.flatnonzero(np.diff(same, append=len(key) + 1) != 1)] + 2
        for start, end in zip(starts, ends, strict=True):
            bucket = order[start:end].tolist()
            for place, later in enumerate(bucket):
                first = bucket[: min(place, NEIGHBOURS // 2)]
                latest = bucket[max(len(first), place - NEIGHBOURS // 2) : place]
                yield from ((earlier, later) for earlier in (*first, *latest))


def across(few: Signatures, many: Signatures, bands: int, rows: int) -> Iterator[tuple[int, int]]:
    """Pairs (row of `few`, row of `many`) that agree in a band; a pair may come again."""
    for own, others in zip(band_keys(few, bands, rows), band_keys(many, bands, rows), strict=True):
        order = np.argsort(own, kind="stable")
        ordered = own[order]
        first, behind = np.searchsorted(ordered, others, "left"), np.searchsorted(ordered, others, "right")
        for place in np.flatnonzero(behind > first).tolist():
            for one in order[first[place] : behind[place]].tolist():
                yield one, place
