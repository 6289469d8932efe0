"""Specs, what is said about missing and bad data, mixing, and the split that keeps a prompt on one side."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.data.choice.choose import held_out, without
from espalier.data.read.specs import DatasetSpec, parse_specs
from espalier.data.records import Message, Record
from espalier.data.store.table import prompt_key, prompt_mark
from espalier.errors import UserError
from tests.data.listed import load_records


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chats(count: int, name: str = "q") -> list[dict]:
    return [{"prompt": f"{name}{number}", "completion": "a"} for number in range(count)]


def questions(records: list) -> list[str]:
    return [record.messages[0].content for record in records]


def test_specs_from_everything_a_config_may_say() -> None:
    assert parse_specs("a.jsonl") == [DatasetSpec("a.jsonl")]
    assert parse_specs(["a.jsonl", {"path": "b", "weight": 2, "columns": {"prompt": "q"}}]) == [
        DatasetSpec("a.jsonl"),
        DatasetSpec("b", weight=2.0, columns={"prompt": "q"}),
    ]
    assert parse_specs({"path": "a", "format": "alpaca"}) == parse_specs([DatasetSpec("a", format="alpaca")])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "wanted a path"),
        (7, "wanted a path"),
        ([7], "entry 1"),
        ({"weight": 1}, "`path` is None"),
        (["a", {"path": "b", "wieght": 1}], "entry 2: unknown key 'wieght'; did you mean 'weight'"),
        ({"path": "b", "format": "aplaca"}, "did you mean 'alpaca'"),
        ({"path": "b", "weight": 0}, "a number above 0"),
        ({"path": "b", "weight": "much"}, "a number above 0"),
        ({"path": "b", "columns": ["q"]}, "name here"),
    ],
)
def test_a_wrong_spec_is_named(value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_specs(value)


def test_files_globs_and_folders_in_a_fixed_order(tmp_path: Path) -> None:
    first = write(tmp_path / "data" / "b.jsonl", chats(2, "b"))
    write(tmp_path / "data" / "deep" / "a.jsonl", chats(1, "a"))
    write(tmp_path / "data" / ".cache" / "a.jsonl", chats(1, "hidden"))
    (tmp_path / "data" / "README.md").write_text("no data")
    (tmp_path / "data" / "dataset_info.json").write_text("{}")
    for path, wanted in (
        ("data", ["b0", "b1", "a0"]),
        ("data/*.jsonl", ["b0", "b1"]),
        ("data/**/*.jsonl", ["b0", "b1", "a0"]),
        ("data/b.jsonl", ["b0", "b1"]),
    ):
        loaded = load_records(parse_specs(str(tmp_path / path)), "chat")
        assert questions(loaded.records) == wanted, path
        assert loaded.hashes[str(first)] == hashlib.sha256(first.read_bytes()).hexdigest()
        assert sum(loaded.counts.values()) == len(wanted)
    assert loaded.records[1].source == f"{first}:2"


def test_a_missing_path_names_what_is_near(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.jsonl", chats(1))
    for path, words in (
        ("data/trian.jsonl", ["no such file", "train.jsonl"]),
        ("data/*.csv", ["no file matches", "train.jsonl"]),
        ("dat/train.jsonl", [str(tmp_path), "no dat in it"]),
        ("data/x/*.json", ["no file matches", "no x in it"]),
    ):
        with pytest.raises(UserError) as caught:
            load_records(parse_specs(str(tmp_path / path)), "chat")
        for word in words:
            assert word in str(caught.value), path
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no data file in this folder"):
        load_records(parse_specs(str(tmp_path / "empty")), "chat")


def test_only_a_plain_name_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(path: str, split: str) -> list[dict]:
        asked.append((path, split))
        if path == "owner/missing":
            raise ConnectionError("offline")
        return chats(2)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    loaded = load_records([DatasetSpec("owner/name", split="test")], "chat")
    assert [record.source for record in loaded.records] == ["owner/name:1", "owner/name:2"]
    with pytest.raises(UserError, match="check the name and the network"):
        load_records([DatasetSpec("owner/missing")], "chat")
    (tmp_path / "folder").mkdir()
    for path in ("folder/name", "owner/name.jsonl", "./owner/name", "name"):
        with pytest.raises(UserError, match="no such file"):
            load_records([DatasetSpec(path)], "chat")
    assert asked == [("owner/name", "test"), ("owner/missing", "train")]


def test_all_bad_records_are_told_at_once_with_the_remedy(tmp_path: Path) -> None:
    rows = chats(20)
    for index in range(4, 17):
        rows[index] = {"prompt": "q", "completion": ""}
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError) as caught:
        load_records([DatasetSpec(str(path))], "chat")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}:5: ") and lines[9].startswith(f"{path}:14: ")
    assert lines[10] == "… and 3 more"
    assert "13 bad records (13 empty text), 7 good" in lines[11] and "--skip-bad" in lines[11]


def test_skip_bad_writes_every_bad_record_and_counts_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q", "completion": 5}\n{"prompt": "q\n{"prompt": "q", "completion": "a"}\n')
    rejected = tmp_path / "run" / "rejected.jsonl"
    loaded = load_records([DatasetSpec(str(path))], "chat", skip_bad=True, rejected_path=rejected)
    assert len(loaded.records) == 1 and loaded.records[0].source == f"{path}:3"
    assert loaded.left_out == Counter({"bad record: not text": 1, "bad record: broken JSON": 1})
    written = [json.loads(line) for line in rejected.read_text(encoding="utf-8").splitlines()]
    assert [line["source"] for line in written] == [f"{path}:1", f"{path}:2"]
    assert written[0]["row"] == {"prompt": "q", "completion": 5}
    assert written[1]["row"] == '{"prompt": "q'
    assert [entry.name for entry in rejected.parent.iterdir()] == ["rejected.jsonl"]


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "a"}] * 3)
    with pytest.raises(UserError, match="3 chosen equals rejected"):
        load_records([DatasetSpec(str(path))], "preference")


def test_weight_is_how_often_a_source_enters(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", chats(100)))

    def load(weight: float, seed: int = 0) -> list[str]:
        loaded = load_records([DatasetSpec(path, weight=weight)], "chat", seed=seed)
        assert loaded.counts == {path: len(loaded.records)}
        assert sum(loaded.left_out.values()) == max(0, 100 - len(loaded.records))
        return questions(loaded.records)

    half = load(0.5)
    assert len(half) == len(set(half)) == 50
    assert half == load(0.5) != load(0.5, seed=1)
    assert half == sorted(half, key=lambda name: int(name[1:]))
    assert Counter(Counter(load(2.5)).values()) == {2: 50, 3: 50}
    assert load(1) == [f"q{number}" for number in range(100)]


def split_validation(records: list[Any], val_size: float, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """(training, validation) records, chosen as the data of a run is: by number, from the marks of the prompts."""
    marks = np.array([prompt_mark(record) for record in records], np.uint64)
    kept, held = without(None, len(records), held_out(lambda: [marks], len(records), val_size, seed))
    return [records[number] for number in kept], [records[number] for number in held]


def test_validation_never_shares_a_prompt_with_training() -> None:
    records = [
        Record.chat((Message("user", f"q{number % 40}"), Message("assistant", f"a{number}")), f"a:{number}")
        for number in range(100)
    ]
    train, held = split_validation(records, 0.2, seed=3)
    assert len(train) + len(held) == 100 and 15 <= len(held) <= 20
    assert not {prompt_key(record) for record in train} & {prompt_key(record) for record in held}
    assert sorted(train + held, key=records.index) == records
    assert (train, held) == split_validation(records, 20, seed=3)
    assert held != split_validation(records, 20, seed=4)[1]
    assert split_validation(records, 0) == (records, [])


def test_a_split_that_cannot_be_is_refused() -> None:
    same = [Record("prompt", (Message("user", "q"),), source=f"a:{number}") for number in range(10)]
    with pytest.raises(UserError, match="share only 1 prompts"):
        split_validation(same, 3)
    with pytest.raises(UserError, match="leaves nothing to train on"):
        split_validation(same, 10)
    with pytest.raises(UserError, match="wanted a number"):
        split_validation(same, -1)
