"""Texts as sets of shingles, in numpy: 5 characters in a row for Chinese, 3 words in a row for other scripts.

A shingle is a number of 64 bits, so a text is a sorted array without repeats. Width, case, white space and
punctuation do not count. Texts shorter than a shingle are one shingle.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from espalier.data.choice.choose import mixed

Numbers = npt.NDArray[np.uint64]

CHARACTERS, WORDS = 5, 3
_WORD = re.compile(r"[^\W_]+")
# Where stretches of kana and Han characters begin and end, in turn.
_HAN = np.array([0x3040, 0x3100, 0x3400, 0x4DC0, 0x4E00, 0xA000, 0xF900, 0xFB00, 0x20000, 0x40000], np.uint32)
_FACTORS = np.random.default_rng(0).integers(0, 2**63, 64, np.uint64) * np.uint64(2) + np.uint64(1)


@dataclass(frozen=True, slots=True)
class Units:
    """A text's letters and digits in one width and case, as it is cut for Chinese and for other scripts."""

    words: list[str]
    characters: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, text: str) -> Units:
        words = _WORD.findall(folded(text))
        return cls(words, np.frombuffer("".join(words).encode("utf-32-le", "replace"), np.uint32))

    @property
    def is_chinese(self) -> bool:
        """Whether Han characters (or kana) are at least a quarter of the letters and digits."""
        number = int(np.count_nonzero(np.searchsorted(_HAN, self.characters, side="right") & 1))
        return 4 * number >= len(self.characters)

    def numbers(self, chinese: bool) -> Numbers:
        """The characters, or the words, as numbers in their order."""
        if chinese:
            return self.characters.astype(np.uint64)
        return np.fromiter((zlib.crc32(word.encode("utf-8", "replace")) for word in self.words), np.uint64)


def folded(text: str) -> str:
    """The text in one width and case."""
    return text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def grams(row: Numbers, length: int) -> Numbers:
    """A number for each `length` units in a row (at most 64), in their order; none where there are fewer."""
    number = len(row) - length + 1
    if number < 1:
        return row[:0]
    total = row[:number] * _FACTORS[0]
    for place in range(1, length):
        total += row[place : place + number] * _FACTORS[place]
    return mixed(total)


def shingles(text: str) -> Numbers:
    """The text's shingles, sorted, each once; empty only where it has no letter or digit."""
    units = Units.of(text)
    chinese = units.is_chinese
    row = units.numbers(chinese)
    length = min(CHARACTERS if chinese else WORDS, len(row))
    return np.unique(grams(row, length)) if length else row


def jaccard(one: Numbers, other: Numbers) -> float:
    """The share of two texts' shingles that both have, 0 to 1; two texts without any are alike.

    >>> jaccard(shingles("春眠不觉晓处处"), shingles("春眠不觉晓处处闻啼鸟"))
    0.5
    """
    both = len(np.intersect1d(one, other, assume_unique=True))
    either = len(one) + len(other) - both
    return both / either if either else 1.0
