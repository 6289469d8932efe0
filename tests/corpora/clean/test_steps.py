"""All steps at once by the command, on a file of one's own, and what the report says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from espalier.cli import app, guarded


def run(*words: object) -> int:
    return guarded(lambda: app([str(word) for word in words], standalone_mode=False))


def test_the_whole_chain_on_a_data_file(tmp_path: Path) -> None:
    story = (
        "从前有一座山，山里有一座庙，庙里有一个老和尚在给小和尚讲故事，讲的是什么呢，讲的是很久以前的事情。"
    )
    question = "下列各项中，属于我国古代四大发明的是哪一项呢"
    outputs = [story, story, story.replace("小和尚", "小徒弟"), "我的号码是13812345678，请给我打电话好吗谢谢",
               f"{question}：造纸术", "好的" * 40, "嗯", "This is an English answer of some length."]  # fmt: skip
    data = tmp_path / "data.json"
    rows = [
        {"instruction": "说" if n < 3 else f"请说第{n}个", "input": "", "output": o}
        for n, o in enumerate(outputs)
    ]
    data.write_text(json.dumps([*rows, {"instruction": "x"}], ensure_ascii=False, indent=1), encoding="utf-8")
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": question}) + "\n", encoding="utf-8")
    out = tmp_path / "clean.jsonl"
    options = [
        "--dedup",
        "near",
        "--near",
        "0.6",
        "--mask",
        "--min-chars",
        "8",
        "--languages",
        "zh",
        "--max-repetition",
        "0.5",
    ]
    assert run("prepare", "clean", data, "--out", out, "--dev", "0", *options, "--exams", exam) == 0
    kept = [json.loads(line)["output"] for line in out.read_text("utf-8").splitlines()]
    assert kept == [story, "我的号码是[手机号]，请给我打电话好吗谢谢"]
    report = json.loads((tmp_path / "clean.report.json").read_text("utf-8"))
    assert report["left_out"] == {
        "too short": 2,
        "another language": 1,
        "repeats itself": 1,
        "a copy of an earlier record": 1,
        "a near copy of an earlier record": 1,
        "has an item of exam": 1,
    }
    page = (tmp_path / "clean.report.md").read_text("utf-8")
    assert "near_copies" in page.replace(" ", "_") and "data.json:" in page and "13812345678" not in page
    left = [json.loads(line) for line in (tmp_path / "clean.left_out.jsonl").read_text("utf-8").splitlines()]
    assert len(left) == 7 and all(row["source"].startswith(str(data)) for row in left)


def test_wrong_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"text": "a"}\n', encoding="utf-8")
    for words, said in (
        (["--dedup", "fuzzy"], "wanted none, exact, near"),
        (["--near", "0"], "wanted a similarity"),
        (["--languages", "zh,de"], "known are zh"),
        (["--max-repetition", "5"], "wanted a share"),
    ):
        assert run("prepare", "clean", data, "--out", tmp_path / "o.jsonl", *words) == 2
        assert said in capsys.readouterr().err
