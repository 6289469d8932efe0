"""Chinese words as jieba cuts them (`jieba.cut(text)`, default mode), several times faster.

The Rust version of jieba gives the same words except where a stretch of letters and Han characters has one of
``+ # & . _ % -`` in it, or a Han character beyond U+9FD5. Such stretches, found by the rule by which jieba
itself cuts texts into blocks, go to jieba, but for those of letters and digits alone, where jieba's rule is a
pattern; they repeat, so many come from a cache. Measured on 26,125 lines of Chinese and English (3.5 million
characters): the same words in each, in an eighth of the time.
"""

from __future__ import annotations

import logging
import re
from functools import cache, lru_cache
from typing import Any

from espalier.errors import UserError

_BLOCK = "[\u4e00-\u9fd5a-zA-Z0-9+#&._%-]"
_APART = re.compile(f"{_BLOCK}*[+#&._%-]{_BLOCK}*")
"""A block of jieba's with a character in it that the two treat differently."""
_LATIN = re.compile(r"([a-zA-Z0-9]+(?:\.\d+)?%?)")
"""How jieba cuts what its dictionary does not know: words and numbers, each with what is between them."""
_KNOWN = ("AT&T", "c#", "C#", "c++", "C++")
"""The words of jieba's dictionary without a Han character."""
_RARE = re.compile("[\u3400-\u4dbf\u9fd6-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
"""Han characters that jieba knows nothing of, and takes for punctuation."""


def cut(text: str) -> list[str]:
    """The words of a text; joined they are the text again."""
    if _RARE.search(text):
        return list(_jieba().lcut(text))
    fast = _rust()
    words: list[str] = []
    place = 0
    for block in _APART.finditer(text):
        if block.start() > place:
            words += fast.cut(text[place : block.start()])
        words += _cut_block(block[0])
        place = block.end()
    if place < len(text):
        words += fast.cut(text[place:])
    return words


@lru_cache(maxsize=2**17)
def _cut_block(block: str) -> tuple[str, ...]:
    if block.isascii() and not any(word in block for word in _KNOWN):
        return tuple(part for part in _LATIN.split(block) if part)
    return tuple(_jieba().cut(block))


@cache
def _jieba() -> Any:
    try:
        import jieba
    except ImportError as error:
        raise UserError(_missing("jieba")) from error
    jieba.setLogLevel(logging.WARNING)
    made = jieba.Tokenizer()
    made.initialize()
    return made


@cache
def _rust() -> Any:
    try:
        import rjieba
    except ImportError as error:
        raise UserError(_missing("rjieba")) from error
    return rjieba


def _missing(name: str) -> str:
    return f"PanGu's tokenizer cuts words with {name}, which is not installed. pip install 'espalier-llm[legacy]'."
