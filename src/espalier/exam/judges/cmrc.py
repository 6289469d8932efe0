"""Exact match and F1 of CMRC 2018, in the segmentation of its official scorer.

Chinese characters and the scorer's list of signs stand alone, everything between them is cut as English words.
F1 is over the longest common run of tokens (a substring, not a subsequence): Cui et al. 2019, "A Span-Extraction
Dataset for Chinese Machine Reading Comprehension".
"""

from __future__ import annotations

from functools import cache
from typing import Any

from espalier.checking.library import library

# The official list also holds "……" as one text of two characters, which it compares with single ones: "…" is no sign.
_SIGNS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")


def judge_cmrc(text: str, references: tuple[str, ...]) -> dict[str, float]:
    """The best F1 and exact match over the references."""
    return {
        "f1": max(_f1(text, reference) for reference in references),
        "exact_match": max(_exact(text, reference) for reference in references),
    }


def segments(text: str, *, signs: bool) -> list[str]:
    """Tokens of the official scorer; `signs`: whether its punctuation signs are kept.

    >>> segments("在2018年，CMRC (中文)", signs=False)
    ['在', '2018', '年', 'cmrc', '(', '中', '文', ')']
    """
    segments: list[str] = []
    word = ""
    for sign in text.strip().lower():
        if sign in _SIGNS and not signs:
            continue
        if "\u4e00" <= sign <= "\u9fa5" or sign in _SIGNS:
            segments += _english(word) if word else []
            word = ""
            segments.append(sign)
        else:
            word += sign
    return segments + (_english(word) if word else [])


@cache
def _tokenizer() -> Any:
    return library("nltk.tokenize", "nltk").NLTKWordTokenizer()


def _english(word: str) -> list[str]:
    return list(_tokenizer().tokenize(word))


def _without_signs(text: str) -> str:
    return "".join(sign for sign in text.strip().lower() if sign not in _SIGNS)


def _exact(text: str, reference: str) -> float:
    return float(_without_signs(text) == _without_signs(reference))


def _f1(text: str, reference: str) -> float:
    answer, right = segments(text, signs=False), segments(reference, signs=False)
    common = _longest_run(answer, right)
    if common == 0:
        return 0.0
    precision, recall = common / len(answer), common / len(right)
    return 2 * precision * recall / (precision + recall)


def _longest_run(a: list[str], b: list[str]) -> int:
    """Length of the longest common run of tokens."""
    best, before = 0, [0] * (len(b) + 1)
    for token in a:
        here = [0] * (len(b) + 1)
        for j, other in enumerate(b):
            if token == other:
                here[j + 1] = before[j] + 1
                best = max(best, here[j + 1])
        before = here
    return best
