"""The command from end to end: files, parts, reports, what a stop leaves, the same bytes for the same seed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from espalier.cli import app, guarded
from espalier.corpora.made import Division, skeleton
from espalier.corpora.prepare.corpora import CORPORA
from espalier.corpora.prepare.run import Preparation, prepare
from espalier.corpora.prepare.shape import SHAPES
from espalier.data.read.sources import DatasetSpec
from espalier.errors import UserError
from tests import processes
from tests.data.listed import load_records


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run(*words: object) -> int:
    return guarded(lambda: app([str(word) for word in words], standalone_mode=False))


SOURCES = {
    "couplets": "couplets",
    "poetry": "chinese_poetry",
    "classical": "classical_modern/双语数据",
    "zhidao": "zhidao_display_rows",
    "lcsts": "lcsts",
    "instruction-wild": "instruction_wild",
    "belle": "belle_zh",
    "alpaca": "alpaca_en/alpaca_5000.json",
    "hh-rlhf": "hh_rlhf",
}


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_a_real_corpus_to_files(shared: Path, tmp_path: Path, source: str) -> None:
    out = tmp_path / "deep/train.jsonl"
    assert run("prepare", source, shared / "data" / SOURCES[source], "--out", out, "--dev", "0.1") == 0
    names = ("train.jsonl", "train.dev.jsonl", "train.left_out.jsonl", "train.report.json", "train.report.md")
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(names)
    report = json.loads((out.parent / "train.report.json").read_text("utf-8"))
    train, dev, without = (read(out.parent / name) for name in names[:3])
    assert report["records"] == {"train": len(train), "dev": len(dev)} and len(train) > 4 * len(dev) > 0
    assert sum(report["left_out"].values()) == len(without)
    kind = {"hh-rlhf": "preference", "instruction-wild": "prompt"}.get(source, "chat")
    poor = sum("answers" in row and max(answer["score"] for answer in row["answers"]) <= 0 for row in train)
    loaded = load_records([DatasetSpec(str(out))], kind)
    assert len(loaded.records) == len(train) - poor and bool(poor) == (source == "zhidao")
    assert loaded.left_out == ({"no answer scores above 0": poor} if poor else {})
    asked = [
        {skeleton(json.dumps(row.get("prompt") or row["messages"][:1], ensure_ascii=False)) for row in part}
        for part in (train, dev)
    ]
    assert not asked[0] & asked[1]
    assert "| train |" in (out.parent / "train.report.md").read_text("utf-8")


@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes_in_every_process(shared: Path, tmp_path: Path) -> None:
    source, written = shared / "data/chinese_poetry/五代诗词", []
    out = tmp_path / "there" / "poems.jsonl"
    code = "print(hash('x'), flush=True); from espalier.cli import main; main()"
    words = [sys.executable, "-c", code, "prepare", "poetry", str(source), "--out", str(out), "--seed", "7"]
    done = processes.run(words, check=True, capture_output=True)
    assert int(done.stdout.splitlines()[0]) != hash("x"), "Python orders a set otherwise there"
    for seed in (7, 8):
        prepare(Preparation("poetry", source), tmp_path / str(seed) / "poems.jsonl", Division(seed))
    for folder in (out.parent, tmp_path / "7", tmp_path / "8"):
        written.append((folder / "poems.jsonl").read_bytes() + (folder / "poems.dev.jsonl").read_bytes())
    assert written[0] == written[1] != written[2]


def test_a_failure_leaves_no_file_and_keeps_the_old_ones(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/in.txt").write_text("春 风\n山 高\n", encoding="utf-8")
    (tmp_path / "in/out.txt").write_text("秋 月\n", encoding="utf-8")
    out = tmp_path / "out/train.jsonl"
    out.parent.mkdir()
    out.write_text("old", encoding="utf-8")
    with pytest.raises(UserError, match="ends before this line"):
        prepare(Preparation("couplets", tmp_path / "in"), out, Division(), force=True)
    assert [path.name for path in out.parent.iterdir()] == ["train.jsonl"] and out.read_text() == "old"


def test_what_was_made_from_something_else_is_not_overwritten_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same input again is the same work again; another input, or the input itself as --out, would be a loss."""
    one, two, out = tmp_path / "one.jsonl", tmp_path / "two.jsonl", tmp_path / "out.jsonl"
    one.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n', "utf-8")
    two.write_text('{"text": "another"}\n', "utf-8")
    assert run("prepare", "clean", one, "--out", out, "--dev", 0) == 0
    first = out.read_bytes()
    assert run("prepare", "clean", one, "--out", out, "--dev", 0, "--min-chars", 1) == 0
    capsys.readouterr()
    for place, said in (
        (out, f"{out}: exists, and was made from {one}"),
        (one, f"{one}: exists, and was not"),
        (tmp_path / "out.dev.jsonl", "out.dev.jsonl: exists"),
    ):
        assert run("prepare", "clean", two, "--out", place) == 2
        shown = capsys.readouterr().err
        assert said in " ".join(shown.split()) and "--force" in shown
    assert run("prepare", "dedup", one, "--out", one, "--dev", 0) == 2
    assert out.read_bytes() == first and b"chosen" in one.read_bytes()
    assert run("prepare", "clean", two, "--out", out, "--dev", 0, "--force") == 0
    assert "another" in out.read_text("utf-8")


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, said in (
        (["prepare", "couplet", empty, "--out", "a.jsonl"], "did you mean 'couplets'?"),
        (["prepare", "couplets", tmp_path / "none", "--out", "a.jsonl"], "no such file or folder"),
        (["prepare", "couplets", empty], "--out is missing"),
        (["prepare", "couplets", empty, "--out", "a.csv"], "ends with .jsonl"),
        (["prepare", "couplets", empty, "--out", "a.jsonl", "--as", "pairs"], "wanted own, chat"),
        (["prepare", "couplets", empty, "--out", "a.jsonl", "--dev", "2"], "wanted a share"),
        (["prepare", "decontaminate", empty, "--out", "a.jsonl"], "--exams names no file"),
        (["prepare", "alpaca", empty, "--out", "a.jsonl"], "no data file in this folder"),
        (["prepare", "alpaca", empty, "--out", empty / "a.jsonl"], "would be read as input the next time"),
    ):
        assert run(*words) == 2, words
        assert said in " ".join(capsys.readouterr().err.split()), words


def test_any_data_file_is_divided_and_counted(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shared / "data/llamafactory_demo/dpo_zh_demo.json"
    assert run("prepare", "split", path, "--out", tmp_path / "t.jsonl", "--dev", "0.2") == 0
    rows = json.loads(path.read_text("utf-8"))
    parts = read(tmp_path / "t.jsonl"), read(tmp_path / "t.dev.jsonl")
    assert len(parts[0]) + len(parts[1]) == 300 and 30 < len(parts[1]) < 90
    assert all(row in rows for part in parts for row in part)
    capsys.readouterr()
    assert run("prepare", "stats", path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["records"] == {"train": 300, "dev": 0}
    assert report["groups"]["train"] == {"dpo_zh_demo.json: preference": 300}
    assert sum(report["languages"].values()) == 300 and report["languages"]["zh"] > 200


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_written_and_read_back(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "couplets.txt"
    path.write_text(
        "".join(f"{'春' * (i % 3 + 2)}{i:02d} {'秋' * (i % 3 + 2)}{i:02d}\n" for i in range(30)),
        encoding="utf-8",
    )
    out = tmp_path / "out/train.jsonl"
    assert run("prepare", "couplets", path, "--out", out, "--as", shape, "--dev", "0.2", "--no-apart") == 0
    kind = {"own": "ranking", "turns": "chat"}.get(shape, shape)
    train, dev = (
        load_records([DatasetSpec(str(place))], kind).records
        for place in (out, out.with_name("train.dev.jsonl"))
    )
    if (
        shape == "preference"
    ):  # 1, 0, 0, -1, -1 makes four pairs; the few couplets of dev have fewer wrong lines
        assert 100 <= len(train) + len(dev) <= 120
    else:
        assert len(train) + len(dev) == 30
    if shape not in ("own", "text"):
        key = {"chat": lambda r: r.messages[0].content, "prompt": lambda r: r.messages[0].content,
               "preference": lambda r: r.prompt[0].content}[kind]  # fmt: skip
        assert not {key(record) for record in train} & {key(record) for record in dev}


def test_a_limit_takes_the_first(tmp_path: Path) -> None:
    path = tmp_path / "couplets.txt"
    path.write_text("".join(f"春{i:02d} 秋{i:02d}\n" for i in range(50)), encoding="utf-8")
    report = prepare(Preparation("couplets", path, limit=7), tmp_path / "o.jsonl", Division(dev=0))
    assert report["records"]["train"] == 7


def test_the_help_names_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    from espalier.commands.prepare import _SOURCES
    from espalier.corpora.prepare.run import TASKS

    assert [name.strip(" .") for part in _SOURCES.split(";") for name in part.split(":")[-1].split(",")] == [
        *CORPORA,
        *TASKS,
    ]
