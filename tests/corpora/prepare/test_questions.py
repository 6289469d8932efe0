"""Zhidao and Baike: grouping, scores and prompts, on samples written here and on the real witnesses."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from espalier.corpora.made import CorpusRecord, Division, Omission
from espalier.corpora.prepare.questions import baike, zhidao
from espalier.data.read.rows import parse_row

ALL = Division(dev=0)


def write_csv(path: Path, rows: list[tuple[Any, ...]], header: str = "title,question,reply,is_best") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header.split(","), *rows])


def test_replies_are_grouped_by_title_best_first(tmp_path: Path) -> None:
    write_csv(tmp_path / "zhidao/law.csv", [
        ("乙问", "", "乙答一", 0),
        ("甲问", "甲问", "甲答一\r\n第二行", 0),
        ("乙问", "细说", "乙答二", 1),
        ("甲问", "", "甲答二", 1),
        ("丙问", "", "", 1),
        ("丙问", "", "丙答", 2),
        ("", "", "谁答", 1),
    ])  # fmt: skip
    write_csv(tmp_path / "zhidao/bank.csv", [("乙问", "", "乙答三", "0.0")])
    found = list(zhidao(tmp_path, ALL))
    rows = [thing.row for thing in found if isinstance(thing, CorpusRecord)]
    assert rows == [
        {"prompt": "问题：乙问 内容：细说", "prefix": "答：", "answers": [
            {"answer": "乙答二", "score": 1}, {"answer": "乙答三", "score": 0}, {"answer": "乙答一", "score": 0}]},
        {"prompt": "问题：甲问", "prefix": "答：", "answers": [
            {"answer": "甲答二", "score": 1}, {"answer": "甲答一第二行", "score": 0}]},
    ]  # fmt: skip
    assert Counter(thing.cause for thing in found if isinstance(thing, Omission)) == {
        "no reply": 1,
        "is_best is neither 0 nor 1": 1,
        "no title": 1,
    }


def test_replies_to_different_questions_of_one_title_stay_apart(tmp_path: Path) -> None:
    rows = [("求助", "电脑坏了", "修", 1), ("求助", "手机坏了", "换", 1), ("求助", "", "别急", 0)]
    write_csv(tmp_path / "a.csv", rows)
    found = {
        t.row["prompt"]: [a["answer"] for a in t.row["answers"]]
        for t in zhidao(tmp_path, ALL)
        if isinstance(t, CorpusRecord)
    }
    assert found == {
        "问题：求助 内容：电脑坏了": ["修"],
        "问题：求助 内容：手机坏了": ["换"],
        "问题：求助": ["别急"],
    }


def test_every_record_has_a_prefix(tmp_path: Path) -> None:
    """The predecessor kept it on the last record of each file only."""
    write_csv(tmp_path / "a.csv", [(f"问{i}", "", f"答{i}", 1) for i in range(5)])
    assert [t.row.get("prefix") for t in zhidao(tmp_path, ALL) if isinstance(t, CorpusRecord)] == ["答："] * 5


def test_missing_columns_are_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [("问", "答")], header="title,answer")
    [thing] = zhidao(tmp_path, ALL)
    assert (
        isinstance(thing, Omission)
        and thing.cause == "no column 'reply'"
        and thing.source.endswith("a.csv:2")
    )


def test_the_real_rows(shared: Path) -> None:
    folder = shared / "data/zhidao_display_rows"
    wanted: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["title"].strip() and row["reply"].strip():
                    reply = row["reply"].replace("\n", "").replace("\r", "")
                    wanted[row["title"].replace("\n", "").replace("\r", "")][reply, int(row["is_best"])] += 1
    found: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
    for thing in zhidao(folder, ALL):
        if isinstance(thing, CorpusRecord):
            title = thing.row["prompt"].removeprefix("问题：").split(" 内容：")[0]
            found[title].update((a["answer"], a["score"]) for a in thing.row["answers"])
    assert found == wanted and sum(c.total() for c in found.values()) > 130


def test_baike_takes_the_longer_of_title_and_description(tmp_path: Path, shared: Path) -> None:
    rows = [
        {"qid": "1", "title": "短", "desc": "更长的\r\n描述", "answer": "答\r\r案"},
        {"qid": "2", "title": "题目", "desc": "", "answer": "答"},
        {"qid": "3", "title": "", "desc": "", "answer": "答"},
        {"qid": "4", "title": "题", "desc": "", "answer": " \r"},
    ]
    path = tmp_path / "baike_qa_train.json"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    found = list(baike(tmp_path, ALL))
    assert [t.row for t in found if isinstance(t, CorpusRecord)] == [
        {"prompt": "更长的描述", "answers": [{"answer": "答案", "score": 1}], "prefix": "答："},
        {"prompt": "题目", "answers": [{"answer": "答", "score": 1}], "prefix": "答："},
    ]
    assert [t.cause for t in found if isinstance(t, Omission)] == ["no question", "no answer"]
    [real] = baike(shared / "data/nlp_chinese_corpus_witness/baike_qa2019.json", ALL)
    assert isinstance(real, CorpusRecord) and "\r" not in real.row["answers"][0]["answer"]
    assert real.row["prompt"] == "冬天进补好一些呢，还是夏天进步好啊？ "
    chat = parse_row(real.row, real.source, "chat")
    assert chat.kind == "chat" and chat.messages[1].prefix == "答："
