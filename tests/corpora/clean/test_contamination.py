"""Exam items planted into records, whole and in part, against a search for strings."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from espalier.corpora.clean.contamination import Exams, exam_texts, without_exam_items
from espalier.corpora.made import CorpusRecord, Omission
from espalier.errors import UserError

QUESTION = "下列关于光合作用的说法中，哪一项是不正确的：叶绿体是进行光合作用的场所"
ENGLISH = (
    "Which of the following statements about the process of photosynthesis in green plants is not correct?"
)
SHORT = "水的化学式是什么呢？"


def exams(folder: Path) -> Path:
    (folder / "bio").mkdir(parents=True)
    (folder / "bio/dev.csv").write_text(
        f'0,"{QUESTION}",甲,乙,丙,丁,A\n1,"{SHORT}",甲,乙,丙,丁,A\n', encoding="utf-8"
    )
    (folder / "mmlu").mkdir()
    rows = [
        {"question": ENGLISH, "choices": ["yes", "no"]},
        {"nested": [["问答的第一句话要够长才行"], {"a": "x"}]},
    ]
    (folder / "mmlu/test.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folder


def clean(folder: Path, texts: list[str]) -> tuple[list[Any], dict[str, Any]]:
    account: dict[str, Any] = {}
    rows = iter([CorpusRecord({"text": text}, text, f"a:{number}") for number, text in enumerate(texts)])
    return list(without_exam_items(rows, (folder,), account)), account


def test_planted_items_are_found_and_counted_by_exam(tmp_path: Path) -> None:
    half = QUESTION[:12]
    texts = [
        f"老师问：{QUESTION}。学生答：丙。",
        QUESTION.replace("，", " ").replace("：", ""),  # other marks
        f"Q: {ENGLISH.upper()} A: no",
        f"这道题是{SHORT}很简单",
        f"下列关于历史的说法中，哪一项是不正确的？{half}",  # an exam's phrases, and less than half of an item
        "与考试无关的一段话，讲的是春天的风景和远方的朋友。",
        "Which of the following statements is true?",
        "问答的第一句话要够长才行，后面随便",
    ]
    found, account = clean(exams(tmp_path / "exams"), texts)
    gone = {thing.source: thing.cause for thing in found if isinstance(thing, Omission)}
    assert gone == {
        "a:0": "has an item of bio",
        "a:1": "has an item of bio",
        "a:2": "has an item of mmlu",
        "a:3": "has an item of bio",
        "a:7": "has an item of mmlu",
    }
    assert {name: (step["items_found"], step["records_removed"]) for name, step in account.items()} == {
        "bio": (2, 3),
        "mmlu": (2, 2),
    }
    assert account["bio"]["examples"][0]["item"].endswith("dev.csv:1")


def test_a_share_of_runs_by_brute_force(tmp_path: Path) -> None:
    chance = random.Random(0)
    han = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"
    items = ["".join(chance.choices(han, k=60)) for _ in range(40)]
    (tmp_path / "e.jsonl").write_text(
        "".join(json.dumps({"q": item}) + "\n" for item in items), encoding="utf-8"
    )
    index = Exams((tmp_path / "e.jsonl",))
    assert len(index) == 40
    for _ in range(60):
        item, start = chance.randrange(40), chance.randrange(40)
        text = "甲" * 20 + items[item][start : start + chance.randrange(10, 60)] + "乙" * 20
        runs = {items[item][at : at + 13] for at in range(48)}
        share = sum(run in text for run in runs) / len(runs)
        hits = index.hits(text)
        assert [(place.rsplit(":", 1)[1], pytest.approx(share)) for _, place, share in hits] == (
            [(str(item + 1), pytest.approx(share))] if share >= 0.5 else []
        )


@pytest.mark.slow
def test_real_exams_find_their_own_questions_and_little_else(shared: Path) -> None:
    folder = shared / "data"
    ceval = [
        text
        for path in sorted((folder / "ceval/val").glob("*.csv"))[:6]
        for _, text in exam_texts(path)
        if len(text) > 30
    ]
    rows = json.loads((folder / "llamafactory_demo/alpaca_zh_demo.json").read_text("utf-8"))[:200]
    texts = [f"题目：{text}\n请回答。" for text in ceval[:40]] + [
        row["instruction"] + row["output"] for row in rows
    ]
    account: dict[str, Any] = {}
    things = [CorpusRecord({"text": text}, text, f"a:{number}") for number, text in enumerate(texts)]
    found = list(without_exam_items(iter(things), (folder / "ceval/val", folder / "cmmlu"), account))
    gone = {int(thing.source.split(":")[1]) for thing in found if isinstance(thing, Omission)}
    assert gone >= set(range(40)) and len(gone) <= 42
    assert set(account) == {"val", "cmmlu"}


def test_short_options_and_numbers_are_no_items(tmp_path: Path) -> None:
    rows = [
        {"question": QUESTION, "A": "美国国防部高级研究所", "B": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"},
        {"question": "1, 2, 3, 4, 5, 6, 7, 8, 9", "A": "10"},
        {"question": "哪项对？", "A": "对"},
    ]
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    index = Exams((tmp_path / "e.jsonl",))
    assert len(index) == 1
    assert index.hits("美国国防部高级研究所在1, 2, 3, 4, 5, 6, 7, 8, 9, 10年前") == []


def test_no_exam_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder; wanted exam files"):
        Exams((tmp_path / "none",))
    with pytest.raises(UserError, match="no exam in this folder"):
        Exams((tmp_path,))
