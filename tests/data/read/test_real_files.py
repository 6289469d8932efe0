"""The formats against real files: how many records each gives, and that every other row is accounted for."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from espalier.data.read.formats import UNANSWERED
from espalier.data.read.sources import DatasetSpec, LoadReport
from espalier.data.records import Record
from espalier.errors import UserError
from tests.data.listed import load_records

EMPTY, ORDER, BROKEN = "bad record: empty text", "bad record: odd role order", "bad record: broken JSON"


def load(shared: Path, path: str, kind: str, **options: str) -> LoadReport:
    return load_records([DatasetSpec(str(shared / "data" / path), **options)], kind, skip_bad=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "kind", "good", "left_out"),
    [
        ("alpaca_zh/zh-data-part-00.json", "chat", 2996, {EMPTY: 4}),
        ("belle_zh/Belle_open_source_1k.json", "chat", 1000, {}),
        ("sharegpt_zh/sharegpt_zh_1K_format.jsonl", "chat", 299, {EMPTY: 1}),
        ("medical_zh/medical_sft_1K_format.jsonl", "chat", 600, {}),
        ("medical_zh/reward_test.json", "preference", 100, {}),
        ("numina_cot", "chat", 300, {}),
        ("llamafactory_demo/alpaca_*.json", "chat", 1999, {}),
        ("llamafactory_demo/glaive_*.json", "chat", 600, {}),
        ("llamafactory_demo/identity.json", "chat", 91, {}),
        ("llamafactory_demo/dpo_*.json", "preference", 600, {}),
        ("llamafactory_demo/kto_en_demo.json", "unpaired", 300, {}),
        ("llamafactory_demo/kto_en_demo.json", "chat", 150, {"label is false: no answer to imitate": 150}),
        ("dpo_zh_medicalgpt", "preference", 711, {}),
        ("dpo_zh_medicalgpt/old_layouts", "chat", 200, {}),
        ("comparison_gpt4_zh", "preference", 1489, {"chosen equals rejected": 11}),
        ("comparison_gpt4_zh", "prompt", 1500, {}),
        ("sentiment_pref_zh/sentiment_comments.jsonl", "preference", 700, {}),
        ("hh_rlhf", "preference", 1492, {EMPTY: 4, ORDER: 4}),
        ("instruction_wild", "prompt", 1731, {BROKEN: 5}),
        ("gsm8k", "prompt", 2800, {}),
        ("math_bench/math_benchmarks_0710.jsonl", "prompt", 450, {}),
        ("text_zh", "text", 220, {}),
        ("text_en", "text", 302, {}),
    ],
)
def test_a_real_file(shared: Path, path: str, kind: str, good: int, left_out: dict[str, int]) -> None:
    loaded = load(shared, path, kind)
    assert len(loaded.records) == good
    assert loaded.left_out == Counter(left_out)
    assert all(record.source.rsplit(":", 1)[1].isdigit() for record in loaded.records)
    assert all(len(digest) == 64 for digest in loaded.hashes.values())


def test_a_real_dialogue_that_ends_with_a_question_keeps_its_answered_turns(shared: Path) -> None:
    path = "sharegpt_zh/sharegpt_zh_1K_format.jsonl"
    cut = [record for record in load(shared, path, "chat").records if record.notes]
    lines = (shared / "data" / path).read_text("utf-8").splitlines()
    turns = [
        len(json.loads(lines[int(record.source.rsplit(":", 1)[1]) - 1])["conversations"]) for record in cut
    ]
    assert [(record.notes, record.messages[-1].role) for record in cut] == [((UNANSWERED,), "assistant")]
    assert [len(record.messages) + 1 for record in cut] == turns


def test_lines_of_one_text_file_are_documents_when_asked_for(shared: Path) -> None:
    assert len(load(shared, "text_en/wiki_demo.txt", "text", format="lines").records) == 30
    [whole] = load(shared, "text_en/tinyshakespeare/input.txt", "text").records
    assert whole == Record.document(
        (shared / "data/text_en/tinyshakespeare/input.txt").read_text("utf-8"), whole.source
    )


def test_old_and_new_layouts_of_the_same_pairs_agree(shared: Path) -> None:
    folder = "dpo_zh_medicalgpt"
    new = {pair.prompt: pair for pair in load(shared, f"{folder}/dpo_zh_500.jsonl", "preference").records}
    for old in ("dpo_zh.jsonl", "dpo_zh_500.history_chosen.jsonl"):
        pairs = load(shared, f"{folder}/old_layouts/{old}", "preference").records
        same = [
            pair for pair in pairs if pair.prompt in new and new[pair.prompt].answers[0] == pair.answers[0]
        ]
        assert len(same) > 90, old


def test_hh_pairs_say_what_the_strings_say(shared: Path) -> None:
    path = shared / "data/hh_rlhf/harmless-base/test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    for pair in load(shared, "hh_rlhf", "preference").records:
        assert pair.kind == "preference"
        row = rows[int(pair.source.rsplit(":", 1)[1]) - 1]
        for answer, column in zip((a.messages for a in pair.answers), ("chosen", "rejected"), strict=True):
            text = "".join(names[message.role] + message.content for message in (*pair.prompt, *answer))
            assert text.replace(" ", "") == row[column].replace(" ", "")


def test_broken_lines_are_named_by_line(shared: Path) -> None:
    path = shared / "data/instruction_wild/data_v2"
    with pytest.raises(UserError) as caught:
        load_records([DatasetSpec(str(path))], "prompt")
    message = str(caught.value)
    for place in (
        "user_2.jsonl:134: ",
        "user_2.jsonl:168: ",
        "user_3.jsonl:10: ",
        "user_3.jsonl:121: ",
        "user_3.jsonl:122: ",
    ):
        assert place in message
    assert "5 bad records" in message and "--skip-bad" in message


def test_single_records_of_real_files(shared: Path) -> None:
    problem = load(shared, "math_bench/math_benchmarks_0710.jsonl", "prompt").records[0]
    assert problem.kind == "prompt"
    assert (problem.messages[0].role, problem.reference) == ("system", "204")
    call = load(shared, "llamafactory_demo/glaive_toolcall_zh_demo.json", "chat").records[0]
    assert call.kind == "chat" and json.loads(call.tools or "")[0]["name"] == "generate_invoice"
    labels = Counter(
        record.answers[0].label
        for record in load(shared, "llamafactory_demo/kto_en_demo.json", "unpaired").records
    )
    assert labels == {True: 150, False: 150}
    assert load(shared, "llamafactory_demo/kto_en_demo.json", "unpaired").records[0].kind == "unpaired"
