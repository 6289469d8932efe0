"""Users' own files in another shape: each row is read as training reads it, and what is written reads back the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from espalier.cli import app, guarded
from espalier.data.read.formats import own_kind
from espalier.data.read.rows import parse_row
from espalier.data.records import Record
from tests.corpora.prepare.conftest import read

TURNS = [
    {"from": "human", "value": "1+1=?"},
    {"from": "gpt", "value": "2"},
    {"from": "human", "value": "+1?"},
]
ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "你好", "input": "0", "output": "好", "history": [["a", "b"]], "system": "s"},
    "openai": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": [{"x": 1}]},
    "sharegpt": {"conversations": [*TURNS, {"from": "gpt", "value": "3"}], "meta": {"a": 1}},
    "sharegpt prompt": {"conversations": TURNS},
    "ranking": {
        "prompt": "问",
        "answers": [{"answer": "坏", "score": 0.2}, {"answer": "好", "score": 1}, {"answer": "中", "score": 0.5}],
    },
    "ranking of equals": {"prompt": "问", "answers": [{"answer": "a", "score": 1}, {"answer": "b", "score": 1}]},
    "ranking of bad ones": {"prompt": "问", "answers": [{"answer": "a", "score": -1}, {"answer": "b", "score": 0}]},
    "preference": {"prompt": "q", "chosen": "好", "rejected": "坏", "system": "s"},
    "sharegpt preference": {"conversations": TURNS, "chosen": {"from": "gpt", "value": "3"}, "rejected": {"from": "gpt", "value": "4"}},
    "hh": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "kto": {"prompt": "q", "completion": "a", "label": True},
    "kto, bad": {"prompt": "q", "completion": "a", "label": False},
    "question": {"question": "q", "answer": "4", "context": "c"},
    "prompt": {"prompt": "q", "ground_truth": "4"},
    "text": {"text": "一段\n文字"},
}  # fmt: skip


def prepared(*words: object) -> int:
    return guarded(lambda: app(["prepare", *map(str, words)], standalone_mode=False))


def wanted(row: dict[str, Any], shape: str) -> list[Record | str]:
    """What a row says in a shape, by the readers that training uses."""
    kind = own_kind(row)
    found = parse_row(row, "", "chat" if shape == "text" and kind != "text" else shape)
    if not isinstance(found, Record):
        return []
    if kind == "ranking" and shape in ("chat", "text") and max(a["score"] for a in row["answers"]) <= 0:
        return []
    if shape == "text":
        return ["\n".join(found.texts)]
    if found.kind != "ranking":
        return [found]
    best, *others = found.answers
    return [
        Record.preference(found.prompt, better.messages, worse.messages)
        for better, worse in zip([best, *others], others, strict=False)
    ]


@pytest.mark.parametrize("shape", ["chat", "preference", "text", "prompt"])
def test_what_is_written_reads_back_as_training_reads_the_row(tmp_path: Path, shape: str) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS.values()), "utf-8")
    assert prepared("clean", path, "--out", out, "--dev", 0, "--as", shape) == 0
    expected = {name: wanted(row, shape) for name, row in ROWS.items()}
    records = [
        replace(r, source="") for row in read(out) if isinstance(r := parse_row(row, "", shape), Record)
    ]
    found = [record.text for record in records] if shape == "text" else records
    assert found == [record for made in expected.values() for record in made]
    kept = {name for name, made in expected.items() if made}
    left = read(tmp_path / "out.left_out.jsonl")
    cut = [
        row for row in left if row["cause"].startswith("cut:")
    ]  # the last question of a dialogue that is kept
    assert len(cut) == (shape in ("chat", "text"))
    assert len(left) - len(cut) == len(ROWS) - len(kept) and len(kept) >= 4
    assert all(row["source"].startswith(f"{path}:") and (row.get("reason") or row["cause"]) for row in left)


def test_turns_are_a_record_an_answer_whose_history_is_only_read(tmp_path: Path) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    asked, said = (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "t"},
    )
    dialogue = [{"role": "system", "content": "s"}, asked, said, asked, {**said, "weight": 0}, asked, said]
    rows = [{"messages": dialogue, "tools": '[{"name": "f"}]'}, {"messages": [asked, {**said, "weight": 0}]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert prepared("clean", path, "--out", out, "--dev", 0, "--as", "turns") == 0
    read_only = [*dialogue[:2], {**said, "weight": 0}, *dialogue[3:6]]
    assert read(out) == [
        {"messages": made, "tools": '[{"name": "f"}]'} for made in (dialogue[:3], [*read_only, said])
    ]
    [left] = read(tmp_path / "out.left_out.jsonl")
    assert left["cause"] == "no turns: each of its answers is only read"


def test_columns_are_renamed_and_a_missing_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "baike.jsonl", tmp_path / "out.jsonl"
    rows = [{"title": f"题{number}", "desc": "", "answer": f"答{number}"} for number in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = ("clean", path, "--out", out, "--dev", 0, "--force")
    assert prepared(*words, "--as", "chat", "--columns", "prompt=title, completion=answer") == 0
    assert [[turn["content"] for turn in row["messages"]] for row in read(out)] == [
        [f"题{number}", f"答{number}"] for number in range(3)
    ]
    assert prepared(*words, "--columns", "prompt=title") == 0
    assert read(out)[0] == {"prompt": "题0", "desc": "", "answer": "答0"}
    for columns, said in (
        ("prompt=name", f"3 missing column, the first at {path}:1: `columns` names 'name', but the record has `title`"),
        ("", f"3 missing column, the first at {path}:1: found the columns `title`, `desc`, `answer`, wanted `messages`"),
        ("prompt", "--columns prompt: wanted NAME_HERE=NAME_THERE"),
    ):  # fmt: skip
        capsys.readouterr()
        assert prepared(*words, "--columns", columns) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert prepared("alpaca", path, "--out", out, "--columns", "instruction=title") == 2
    assert "prepare clean --as chat" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", '[{"text": "a"},\n{"text": "b"},\n{"text": "c', "a.json:3: broken JSON at column 10"),
        ("a.csv", 'prompt,completion\na,b\nc,"d\n' + "e,f\n" * 9, "a.csv:3: broken CSV: a quote that opens"),
    ],
)
def test_a_file_that_hides_records_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    assert prepared("clean", path, "--out", tmp_path / "out.jsonl") == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "out.jsonl").exists()
