"""Real lines of Chinese and English, and lines that are hard on purpose."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

HARD = [
    *("", " ", "  a   b ", "\n", "a\nb\n\n c\t\td ", "　　你好　", "\r\n你好\r\n", "people develop eopsop"),
    *("👩‍👩‍👧‍👦 🏳️‍🌈", "é e\u0301 ½ \u200b العربية 한국어", "１２３ ＡＢＣ ｱｲｳ ！，。", "“引号”——……"),
    *("3.14% 2-3 a.b.c seed_task_104 C++ c# AT&T x=1.5.6", "卡拉OK很好 C++语言 T恤衫", "𠀀𠮷野家 鿕鿖"),
    *("[MASK] <sep> <s></s><unk> <n> <|endoftext|>", "\x00\x01 a\0b \ufeffx", "I'LL don'T 's"),
]


@pytest.fixture(scope="session")
def lines(shared: Path) -> list[str]:
    """About 2,000 lines out of many files, the hard ones among them."""
    found: list[str] = []
    files = sorted((shared / "data").rglob("*.json*")) + sorted((shared / "data").rglob("*.txt"))
    for file in files:
        if "tokenizers" in file.parts:
            continue
        with file.open(encoding="utf-8", errors="ignore") as held:
            rows = held.read(60_000).split("\n")[:-1]
        for row in random.Random(len(rows)).sample(rows, min(5, len(rows))):
            try:
                values = json.loads(row)
            except json.JSONDecodeError:
                values = row
            texts = [v for v in values.values() if isinstance(v, str)] if isinstance(values, dict) else [row]
            found.append("\n".join(texts)[:600])
    assert len(found) > 800
    return found + HARD
