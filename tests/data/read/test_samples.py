"""Every format on a few records of its own, against a reading of it in plain Python."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from espalier.data.read.sources import DatasetSpec
from espalier.data.records import Message, Messages, Record
from espalier.errors import UserError
from tests.conftest import SAMPLES
from tests.data.listed import load_records

FOLDER = SAMPLES / "data"
SPEAKERS = {"human": "user", "gpt": "assistant", "system": "system"}
PAIRS = ("plain", "messages", "sharegpt", "hh", "responses", "alpaca")


def rows(name: str) -> list[dict[str, Any]]:
    text = (FOLDER / name).read_text("utf-8")
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def load(path: Path, kind: str, **options: Any) -> list[Any]:
    return load_records([DatasetSpec(str(path))], kind, **options).records  # type: ignore[return-value]


def turns(record: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in record.messages]


def said(messages: Messages) -> str:
    [message] = messages
    assert message.role == "assistant"
    return message.content


def chat_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """A row of any format of chats, in ten lines."""
    if "messages" in row:
        return [(turn["role"], turn["content"]) for turn in row["messages"]]
    if "conversations" in row:
        return [(SPEAKERS[turn["from"]], turn["value"]) for turn in row["conversations"]]
    if "prompt" in row:
        return [("user", row["prompt"]), ("assistant", row["completion"])]
    before = [("system", row["system"])] if row.get("system") else []
    for question, answer in row.get("history", []):
        before += [("user", question), ("assistant", answer)]
    asked = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
    return [*before, ("user", asked), ("assistant", row["output"])]


@pytest.mark.parametrize("name", ["alpaca.json", "sharegpt.jsonl", "openai.jsonl", "prompt_completion.jsonl"])
def test_chats(name: str) -> None:
    found = load(FOLDER / name, "chat")
    assert all(record.kind == "chat" for record in found)
    assert [turns(record) for record in found] == [chat_of(row) for row in rows(name)]
    asked = load(FOLDER / name, "prompt")
    assert all(record.kind == "prompt" for record in asked)
    assert [record.messages[-1].role for record in asked] == ["user"] * len(found)


@pytest.mark.parametrize("name", ["openai.jsonl", "alpaca.json"])
def test_a_list_and_lines_say_the_same(name: str, tmp_path: Path) -> None:
    held = rows(name)
    (tmp_path / "a.json").write_text(json.dumps(held, ensure_ascii=False), "utf-8")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in held)
    (tmp_path / "b.jsonl").write_text(lines, "utf-8")
    first, second = (load(tmp_path / file, "chat") for file in ("a.json", "b.jsonl"))
    assert [turns(record) for record in first] == [turns(record) for record in second]
    assert [turns(record) for record in first] == [chat_of(row) for row in held]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_tables(ending: str, tmp_path: Path) -> None:
    held, path = rows("prompt_completion.jsonl"), tmp_path / f"a.{ending}"
    if ending == "parquet":
        arrow = pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
        import pyarrow.parquet as parquet

        parquet.write_table(arrow.Table.from_pylist(held), str(path))
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(
                stream, ["prompt", "completion"], delimiter="\t" if ending == "tsv" else ","
            )
            writer.writeheader()
            writer.writerows(held)
    assert [turns(record) for record in load(path, "chat")] == [chat_of(row) for row in held]


@pytest.mark.parametrize("shape", PAIRS)
def test_pairs_of_every_shape_are_the_plain_ones(shape: str) -> None:
    name = f"preference_{shape}.json" + ("" if shape == "alpaca" else "l")
    found = load(FOLDER / name, "preference")
    assert all(pair.kind == "preference" for pair in found)
    wanted = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows("preference_plain.jsonl")]
    assert [(pair.prompt[-1].content, *(said(a.messages) for a in pair.answers)) for pair in found] == wanted
    assert all([message.role for message in pair.prompt] == ["user"] for pair in found)


def test_a_ranking_keeps_its_order_and_scores() -> None:
    [found], [row] = load(FOLDER / "ranking.jsonl", "ranking"), rows("ranking.jsonl")
    assert found.kind == "ranking"
    assert found.prompt == (Message("user", row["prompt"]),)
    answers = [(said(a.messages), a.messages[0].prefix, a.score) for a in found.answers]
    assert answers == [(one["answer"], row["prefix"], one["score"]) for one in row["answers"]]


def test_labels_of_single_answers() -> None:
    held, found = rows("kto.jsonl"), load(FOLDER / "kto.jsonl", "unpaired")
    assert all(record.kind == "unpaired" for record in found)
    assert [record.answers[0].label for record in found] == [row["label"] for row in held]
    assert [said(record.answers[0].messages) for record in found] == [chat_of(row)[-1][1] for row in held]
    loaded = load_records([DatasetSpec(str(FOLDER / "kto.jsonl"))], "chat")
    assert [turns(chat) for chat in loaded.records] == [chat_of(row) for row in held if row["label"]]
    assert loaded.left_out == Counter({"label is false: no answer to imitate": 1})


def test_documents() -> None:
    assert [text.text for text in load(FOLDER / "text.jsonl", "text")] == [
        r["text"] for r in rows("text.jsonl")
    ]
    [whole] = load(FOLDER / "document.txt", "text")
    assert whole == Record.document((FOLDER / "document.txt").read_text("utf-8"), whole.source)


def test_a_broken_line_is_named_and_may_be_left_out() -> None:
    with pytest.raises(UserError, match=r"broken\.jsonl:2: "):
        load(FOLDER / "broken.jsonl", "chat")
    loaded = load_records([DatasetSpec(str(FOLDER / "broken.jsonl"))], "chat", skip_bad=True)
    assert [record.source.rsplit(":", 1)[1] for record in loaded.records] == ["1", "3"]
    assert loaded.left_out == Counter({"bad record: broken JSON": 1})
