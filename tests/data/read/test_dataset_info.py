"""LLaMA-Factory's table of data sets: every layout it can describe, the real file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from espalier.data.read.sources import LoadReport
from espalier.data.read.specs import parse_specs
from espalier.data.records import Message
from espalier.errors import UserError
from tests.data.listed import load_records


def folder_of(folder: Path, info: dict[str, Any], **files: Any) -> Path:
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folder


def load(folder: Path, names: list[Any], kind: str) -> LoadReport:
    return load_records(parse_specs(names, str(folder)), kind)


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("identity", "chat", 91),
        ("alpaca_zh_demo", "chat", 1000),
        ("glaive_toolcall_zh_demo", "chat", 300),
        ("dpo_zh_demo", "preference", 300),
        ("kto_en_demo", "unpaired", 300),
    ],
)
def test_the_real_table(shared: Path, name: str, kind: str, count: int) -> None:
    folder = shared / "data/llamafactory_demo"
    named = load(folder, [name], kind)
    assert len(named.records) == count
    assert named.records == load_records(parse_specs(str(folder / f"{name}.json")), kind).records


def test_columns_and_speakers_of_their_own(tmp_path: Path) -> None:
    info = {
        "own": {
            "file_name": "own.json",
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "system": "sys", "tools": "tools"},
            "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "Q", "assistant_tag": "A",
                     "observation_tag": "O", "function_tag": "F"},
        },
        "flat": {"file_name": "flat.json", "columns": {"prompt": "ask", "response": "reply", "history": "before"}},
        "pairs": {"file_name": "pairs.json", "ranking": True, "columns": {"prompt": "ask", "chosen": "good", "rejected": "bad"}},
        "kto": {"file_name": "kto.json", "columns": {"prompt": "ask", "response": "reply", "kto_tag": "ok"}},
        "pre": {"file_name": "pre.json", "columns": {"prompt": "text"}},
        "some": {"file_name": "flat.json", "columns": {"prompt": "ask", "response": "reply"}, "num_samples": 1},
    }  # fmt: skip
    folder = folder_of(
        tmp_path,
        info,
        own=[{"sys": "S", "talk": [{"who": "Q", "said": "1"}, {"who": "F", "said": "{}"}, {"who": "O", "said": "2"},
                                   {"who": "A", "said": "3"}]}],
        flat=[{"ask": "q", "reply": "a", "before": [["x", "y"]]}, {"ask": "q2", "reply": "a2"}],
        pairs=[{"ask": "q", "good": "g", "bad": "b"}],
        kto=[{"ask": "q", "reply": "a", "ok": False}],
        pre=[{"text": "春眠不觉晓"}],
    )  # fmt: skip
    [chat] = load(folder, ["own"], "chat").records
    assert chat.kind == "chat"
    assert [(m.role, m.content) for m in chat.messages] == [
        ("system", "S"), ("user", "1"), ("assistant", "{}"), ("tool", "2"), ("assistant", "3"),
    ]  # fmt: skip
    first, second = load(folder, ["flat"], "chat").records
    assert [m.content for m in first.messages] == ["x", "y", "q", "a"] and len(second.messages) == 2
    [pair] = load(folder, ["pairs"], "preference").records
    assert pair.kind == "preference" and pair.answers[0].messages == (Message("assistant", "g"),)
    [kto] = load(folder, ["kto"], "unpaired").records
    assert kto.kind == "unpaired" and kto.answers[0].label is False
    [text] = load(folder, ["pre"], "text").records
    assert text.kind == "text" and text.text == "春眠不觉晓"
    some = load(folder, ["some"], "chat")
    assert len(some.records) == 1 and sum(some.left_out.values()) == 1


def test_own_keys_win_and_paths_stay_paths(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"a": {"file_name": "a.json"}}, a=[{"instruction": "q", "output": "r"}] * 4)
    assert len(load(folder, [{"path": "a", "weight": 0.5}], "chat").records) == 2
    assert len(load(folder, [str(folder / "a.json")], "chat").records) == 4
    assert len(load(folder, ["a.json"], "chat").records) == 4
    assert parse_specs("owner/name", str(folder))[0].path == "owner/name"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"file_name": "x.json", "columns": {"messages": "m", "images": "i"}, "formatting": "sharegpt"},
            "has images; only text",
        ),
        ({"script_url": "x"}, "a script of its own"),
        ({"columns": {"prompt": "x"}}, "no file_name and no hf_hub_url"),
        ({"file_name": "x.json", "formatting": "raw"}, "wanted alpaca or sharegpt"),
        ({"file_name": "x.json", "columns": {"promt": "x"}}, "'promt'; known are"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, entry: dict[str, Any], words: str) -> None:
    folder = folder_of(tmp_path, {"set": entry})
    with pytest.raises(UserError, match=words):
        parse_specs("set", str(folder))


def test_an_unknown_name_gets_near_ones(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"alpaca_zh_demo": {"file_name": "x.json"}})
    with pytest.raises(UserError, match=r"neither a file nor in .*near it: alpaca_zh_demo"):
        parse_specs("alpaca_zh", str(folder))
    with pytest.raises(UserError, match=r"holds no dataset_info\.json"):
        parse_specs("alpaca_zh", str(tmp_path / "none"))
