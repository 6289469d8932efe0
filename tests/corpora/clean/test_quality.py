"""The filters by hand-made texts."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.corpora.clean.quality import filtered, language, repetition
from espalier.corpora.made import CorpusRecord, Omission


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("春眠不觉晓，处处闻啼鸟。", "zh"),
        ("The quick brown fox jumps over the lazy dog.", "en"),
        ("用 transformers 库加载模型：AutoModel.from_pretrained", "en"),
        ("请用 Python 写一个快速排序，并解释它的时间复杂度。", "zh"),
        ("これは日本語の文章です。漢字も入っています。", "ja"),
        ("안녕하세요 세계", "ko"),
        ("Привет, мир", "ru"),
        ("12345 + 67890 = ?", ""),
        ("", ""),
    ],
)
def test_language_is_the_script_of_most(text: str, wanted: str) -> None:
    assert language(text) == wanted


def test_repetition_against_a_count_by_hand() -> None:
    assert repetition("abcdefgh") == 0.0
    text = "abcdefghabcdefgh"  # nine runs of eight characters, the last one the first again
    assert repetition(text) == pytest.approx(1 / 9)
    assert repetition("哈" * 108) == pytest.approx(1 - 1 / 101)


def test_each_filter_takes_out_its_own_and_says_why() -> None:
    texts = ["短", "春眠不觉晓处处闻啼鸟", "x" * 60 + "长" * 40, "Hello there, my dear friend", "好的" * 15]
    rows = iter([CorpusRecord({"text": text}, text, f"a:{number}") for number, text in enumerate(texts)])
    account: dict[str, Any] = {}
    found = list(filtered(rows, account, min_chars=5, max_chars=50, languages=("zh",), max_repetition=0.5))
    assert [thing.source for thing in found if isinstance(thing, CorpusRecord)] == ["a:1"]
    assert [(thing.source, thing.cause) for thing in found if isinstance(thing, Omission)] == [
        ("a:0", "too short"),
        ("a:2", "too long"),
        ("a:3", "another language"),
        ("a:4", "repeats itself"),
    ]
    assert {name: step["removed"] for name, step in account.items()} == dict.fromkeys(account, 1)
    assert account["another language"]["examples"][0]["why"] == "reads as en"
