"""Masking against lists of what is and what is not personal, and a checksum computed another way."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from espalier.corpora.clean.personal import is_identity_number, masked, without_personal_data
from espalier.corpora.made import CorpusRecord


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("打13812345678找我", "打[手机号]找我"),
        ("138-1234-5678", "[手机号]"),
        ("+86 138 1234 5678。", "[手机号]。"),
        ("008613912345678", "[手机号]"),
        ("座机010-62345678转8", "座机[电话]转8"),
        ("（0551）62661234", "[电话]"),
        ("021 52341234", "[电话]"),
        ("mail: a.b+c@mail.example.com.cn, ok", "mail: [邮箱], ok"),
        ("身份证11010519491231002X。", "身份证[身份证号]。"),
        ("11010519491231002x", "[身份证号]"),
    ],
)
def test_what_is_personal_goes(text: str, wanted: str) -> None:
    assert masked(text)[0] == wanted


@pytest.mark.parametrize(
    "text",
    [
        "110105194912310021",  # a wrong checksum
        "110105194913310025",  # a thirteenth month
        "圆周率3.14159265358979",
        "12812345678",  # no mobile number begins so
        "订单2138123456789",
        "0.13812345678",
        "2023-01-15 10:30",
        "99012345678",
        "user@localhost",
        "@所有人",
        "1949年10月1日，人口14亿1178万",
        "ISBN 978-7-111-12345-6",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert masked(text) == (text, Counter())


def test_the_checksum_as_a_polynomial() -> None:
    """GB 11643-1999 weighs place i (from the right, from 1) by 2^(i-1) mod 11; the whole is 1 mod 11."""
    chance = random.Random(3)
    for _ in range(300):
        body = f"110105{chance.randint(1950, 2010)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}{chance.randint(0, 999):03d}"
        right = [
            last
            for last in "0123456789X"
            if sum(
                (10 if char == "X" else int(char)) * 2**place
                for place, char in enumerate((body + last)[::-1])
            )
            % 11
            == 1
        ]
        assert [last for last in "0123456789X" if is_identity_number(body + last)] == right and len(
            right
        ) == 1


def test_every_text_of_a_row_is_masked_and_the_report_gives_nothing_away() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "我是13812345678"},
            {"role": "assistant", "content": "记下了 a@b.cn"},
        ],
        "tools": None,
    }
    account: dict[str, Any] = {}
    [made, other] = without_personal_data(
        iter([CorpusRecord(row, "我是13812345678", "a:1"), CorpusRecord({"text": "无"}, "无", "a:2")]),
        account,
    )
    assert isinstance(made, CorpusRecord) and isinstance(other, CorpusRecord)
    assert [turn["content"] for turn in made.row["messages"]] == ["我是[手机号]", "记下了 [邮箱]"]
    assert made.key == "我是[手机号]" and row["messages"][0]["content"] == "我是13812345678"
    assert account["records"] == 1 and account["masked"] == {"身份证号": 0, "邮箱": 1, "手机号": 1, "电话": 0}
    assert "138" not in str(account)
