"""Instruction and preference sets, and rankings in other shapes."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from espalier.corpora.made import DEV, TRAIN, CorpusRecord, Division, Omission
from espalier.corpora.prepare.corpora import CORPORA
from espalier.corpora.prepare.shape import SHAPES, pairs, shaped
from espalier.data.read.rows import parse_row
from espalier.data.records import Answer, Message, Record
from espalier.errors import UserError

ALL = Division(dev=0)


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def read(name: str, where: Path) -> list[CorpusRecord | Omission]:
    return list(CORPORA[name].read(where, ALL))


def rows(found: list[CorpusRecord | Omission]) -> list[dict[str, Any]]:
    return [thing.row for thing in found if isinstance(thing, CorpusRecord)]


def test_belle_and_alpaca_say_what_they_said(shared: Path) -> None:
    path = shared / "data/belle_zh/Belle_open_source_1k.json"
    wanted = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    got = rows(read("belle", path))
    assert [[turn["content"] for turn in row["messages"]] for row in got] == [
        [row["instruction"], row["output"]] for row in wanted
    ]
    found = read("alpaca", shared / "data/alpaca_zh")
    assert len(rows(found)) == 2996
    assert Counter(t.cause for t in found if isinstance(t, Omission)) == {"empty text": 4}


def test_instructions_without_outputs_are_prompts(shared: Path, tmp_path: Path) -> None:
    found = read("instruction-wild", shared / "data/instruction_wild")
    assert len(rows(found)) == 1731 and all(set(row) == {"prompt"} for row in rows(found))
    assert Counter(t.cause for t in found if isinstance(t, Omission)) == {"broken JSON": 5}
    answered = write(tmp_path / "a.json", [{"instruction": "问", "input": "", "output": "答"}])
    assert rows(read("instruction-wild", answered)) == [
        {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}
    ]


def test_hh_pairs_part_where_the_dialogues_do(shared: Path) -> None:
    with gzip.open(shared / "data/hh_rlhf/harmless-base/test.jsonl.gz", "rt", encoding="utf-8") as stream:
        source = [json.loads(line) for line in stream]
    found = read("hh-rlhf", shared / "data/hh_rlhf")
    assert len(rows(found)) == 1492
    marks = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    for thing in found:
        if isinstance(thing, CorpusRecord):
            row = source[int(thing.source.rsplit(":", 1)[1]) - 1]
            for side in ("chosen", "rejected"):
                turns = [*thing.row["prompt"], *thing.row[side]]
                text = "".join(marks[turn["role"]] + turn["content"] for turn in turns)
                assert text.replace(" ", "") == row[side].replace(" ", "")


def test_rm_static_prompts_become_turns(tmp_path: Path) -> None:
    prompt = "\n\nHuman: 你好 Human 吗\n\nAssistant: 好\n\nHuman: 再见\n\nAssistant:"
    path = write(
        tmp_path / "train.json", [{"prompt": prompt, "response": " x", "chosen": " 再见", "rejected": " 不"}]
    )
    [row] = rows(read("rm-static", path))
    assert [(turn["role"], turn["content"]) for turn in row["prompt"]] == [
        ("user", "你好 Human 吗"),
        ("assistant", "好"),
        ("user", "再见"),
    ]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("再见", "不")


def test_the_local_files_of_deepspeed_chat(tmp_path: Path) -> None:
    ask = " Human: {} Assistant:"
    write(tmp_path / "train.json", [
        {"prompt": ask.format("一"), "chosen": " 好", "rejected": " 坏"},
        {"prompt": ask.format("二"), "chosen": " 好", "rejected": None},
        {"prompt": ask.format("三"), "chosen": " 好", "rejected": " 坏"},
        {"prompt": "四", "chosen": "同", "rejected": "同"},
        {"chosen": "x"},
    ])  # fmt: skip
    write(tmp_path / "eval.json", [{"prompt": ask.format("三"), "chosen": " 妙", "rejected": " 差"}])
    found = read("deepspeed-chat", tmp_path)
    made = [thing for thing in found if isinstance(thing, CorpusRecord)]
    assert [(thing.part, thing.key) for thing in made] == [(DEV, "三"), (TRAIN, "一"), (TRAIN, "二")]
    assert "messages" in made[2].row and "rejected" in made[1].row
    assert [thing.cause for thing in found if isinstance(thing, Omission)] == [
        "its prompt stands in the held-out file",
        "chosen equals rejected",
        "no column 'prompt'",
    ]


def test_hc3_and_zhihu(tmp_path: Path) -> None:
    hc3 = write(tmp_path / "h.json", [
        {"question": "问", "human_answers": ["", "人答", "又答"], "chatgpt_answers": ["机答"]},
        {"question": "问", "human_answers": []},
    ])  # fmt: skip
    found = read("hc3", hc3)
    assert [row["messages"][1]["content"] for row in rows(found)] == ["人答"]
    assert [thing.cause for thing in found if isinstance(thing, Omission)] == ["empty text"]
    zhihu = write(
        tmp_path / "z.json", [{"INSTRUCTION": "问", "RESPONSE": "答", "SOURCE": "Zhihu", "METADATA": "{}"}]
    )
    assert [turn["content"] for turn in rows(read("zhihu-kol", zhihu))[0]["messages"]] == ["问", "答"]


def ranked(*scores: float) -> dict[str, Any]:
    answers = [{"answer": f"a{i}", "score": score} for i, score in enumerate(scores)]
    return {"prompt": "问", "prefix": "答：", "answers": answers}


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ((1, 0, 0, -1, -1), [(0, 1), (0, 2), (2, 3), (2, 4)]),
        ((1, 1, 0), [(1, 2)]),
        ((1, 1), []),
        ((3, 2, 1), [(0, 1), (1, 2)]),
        ((1,), []),
    ],
)
def test_pairs_never_join_equals(scores: tuple[float, ...], wanted: list[tuple[int, int]]) -> None:
    answers = [Answer((Message("assistant", f"a{i}"),), score) for i, score in enumerate(scores)]
    assert pairs(answers) == [(answers[i], answers[j]) for i, j in wanted]


def test_every_shape_is_read_back_as_its_record() -> None:
    for shape in SHAPES[1:]:
        found = list(shaped(iter([CorpusRecord(ranked(1, 0), "问", "a:1")]), shape))
        [made] = found
        assert isinstance(made, CorpusRecord)
        kind = "chat" if shape == "turns" else shape
        record = parse_row(made.row, "a:1", kind)
        assert isinstance(record, Record) and record.kind == kind, record
        if record.kind == "text":
            assert record.text == "问\n答：a0"
        if record.kind == "prompt":
            assert record.prefix == "答："
        if record.kind == "preference":
            assert [answer.messages[0].prefix for answer in record.answers] == ["答："] * 2


def test_what_has_no_such_shape_is_said() -> None:
    [without] = shaped(iter([CorpusRecord(ranked(0, -1), "问", "a:1")]), "chat")
    assert isinstance(without, Omission) and without.cause == "no chat: no answer scores above 0"
    [without] = shaped(iter([CorpusRecord(ranked(1, 1), "问", "a:1")]), "preference")
    assert isinstance(without, Omission) and "no answer is better" in without.cause
    with pytest.raises(UserError, match="has one answer to a question and so no pairs; use --as chat"):
        list(shaped(iter([CorpusRecord({"prompt": "问", "completion": "答"}, "问", "a:1")]), "preference"))


def test_the_summary_that_was_chosen_is_better(tmp_path: Path) -> None:
    info = {"id": "1", "post": "长的帖子", "title": "T", "subreddit": "tifu", "site": None, "article": None}
    article = {"id": "2", "article": "news", "post": None, "title": None, "subreddit": None}
    two = [{"text": " 甲", "policy": "sup", "note": "n"}, {"text": " 乙", "policy": "ref", "note": ""}]
    rows = [
        {"info": info, "summaries": two, "choice": 1, "worker": "w", "extra": {"confidence": 5}},
        {"info": article, "summaries": two, "choice": 0},
        {"info": info, "summaries": two, "choice": 2},
        {"info": info, "summaries": two},
        {"info": {}, "summaries": two, "choice": 0},
    ]
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = list(CORPORA["summarize-from-feedback"].read(path, Division()))
    made = [thing.row for thing in found if isinstance(thing, CorpusRecord)]
    assert [
        [turn["content"] for turn in (*row["prompt"], *row["chosen"], *row["rejected"])] for row in made
    ] == [
        ["SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: 长的帖子\n\nTL;DR:", "乙", "甲"],
        ["ARTICLE: news\n\nTL;DR:", "甲", "乙"],
    ]
    lost = {thing.source: thing.cause for thing in found if isinstance(thing, Omission)}
    assert lost == {
        f"{path}:3": "no comparison",
        f"{path}:4": "no column 'choice'",
        f"{path}:5": "empty prompt",
    }


def test_the_answer_with_the_higher_score_is_better(tmp_path: Path) -> None:
    asked = {"dataset": "eli5", "id": "1", "full_text": "Why?"}
    rows = [
        {
            "question": asked,
            "answer_0": "a [1]",
            "answer_1": "b",
            "score_0": low,
            "score_1": high,
            "quotes_0": {},
        }
        for low, high in ((0.5, -0.5), (-1, 1), (0.0, 0.0), (None, 1))
    ]
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = list(CORPORA["webgpt"].read(path, Division()))
    made = [thing.row for thing in found if isinstance(thing, CorpusRecord)]
    assert [
        [turn["content"] for turn in (*row["prompt"], *row["chosen"], *row["rejected"])] for row in made
    ] == [
        ["Why?", "a [1]", "b"],
        ["Why?", "b", "a [1]"],
    ]
    lost = {thing.source: thing.cause for thing in found if isinstance(thing, Omission)}
    assert lost == {f"{path}:3": "both answers score the same", f"{path}:4": "broken score"}


def test_openai_s_own_file_of_webgpt_is_read_as_the_hub_s_copy(tmp_path: Path) -> None:
    """Its lines are lists of two answers, each with the question."""
    asked = {"dataset": "eli5", "id": "1", "full_text": "Why?"}

    def side(answer: str, score: float, **other: Any) -> dict[str, Any]:
        return {"question": asked, "quotes": {}, "answer": answer, "tokens": {}, "score": score, **other}

    lines = [
        [side("a", 0.5), side("b", -0.5)],
        [side("a", -1), side("b", 1)],
        [side("a", 0.0), side("b", 0.0)],
        [side("a", 1), side("b", -1, question={"full_text": "What?"})],
        [side("a", 1)],
    ]
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    found = list(CORPORA["webgpt"].read(path, Division()))
    made = [thing.row for thing in found if isinstance(thing, CorpusRecord)]
    assert [[row[name][0]["content"] for name in ("prompt", "chosen", "rejected")] for row in made] == [
        ["Why?", "a", "b"],
        ["Why?", "b", "a"],
    ]
    lost = [thing.cause for thing in found if isinstance(thing, Omission)]
    assert lost == ["both answers score the same", "not an object", "not an object"]
