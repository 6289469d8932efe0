"""The script in which a text is written, which tells its language well enough for an account of data."""

from __future__ import annotations

import re
from collections import Counter

_SCRIPTS = {
    "zh": re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
    "ja": re.compile("[\u3040-\u30ff]"),
    "ko": re.compile("[\uac00-\ud7af\u1100-\u11ff]"),
    "en": re.compile("[A-Za-zÀ-ɏ]"),
    "ru": re.compile("[Ѐ-ӿ]"),
    "ar": re.compile("[\u0600-\u06ff]"),
}
LANGUAGES = tuple(_SCRIPTS)
"""What `language` can tell apart. It tells scripts: en is all that is written in Latin letters."""


def language(text: str) -> str:
    """The script of most of the text; kana make it Japanese; "" where there is no letter.

    A Han character weighs as much as three letters, about what it takes to write it in Latin ones.

    >>> language("用 PyTorch 训练语言模型"), language("これは日本語です"), language("2 + 3 = 5")
    ('zh', 'ja', '')
    """
    counts = Counter({name: len(script.findall(text)) for name, script in _SCRIPTS.items()})
    if counts["ja"] and 4 * counts["ja"] >= counts["zh"]:
        return "ja"
    counts["zh"] *= 3
    name, count = counts.most_common(1)[0]
    return name if count else ""
