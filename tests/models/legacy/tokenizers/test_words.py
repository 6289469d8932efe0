"""The fast cut is jieba's own, word for word."""

from __future__ import annotations

import jieba

from espalier.models.legacy.tokenizers.words import cut
from tests.models.legacy.tokenizers.conftest import HARD

jieba.setLogLevel(60)

BLOCKS = [
    "%%",
    "..",
    "1.2.3%",
    "3.5%%",
    "a1.5b",
    ".5",
    "xC#y",
    "C#.NET c++11",
    "AT&T公司",
    "你好.世界",
    "a_中-文1.5%",
]


def test_real_lines_are_cut_alike(lines: list[str]) -> None:
    for line in lines:
        assert cut(line) == jieba.lcut(line), line


def test_hard_blocks_are_cut_alike() -> None:
    for text in [*HARD, *BLOCKS]:
        assert cut(text) == jieba.lcut(text), text
        assert "".join(cut(text)) == text
