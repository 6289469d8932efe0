"""Exams whose answers are written: real files, prompts by hand, and a model that writes what it knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rouge_score", reason="the judges of the extra `exams` are not installed")

from espalier.data.records import LeftOut
from espalier.errors import UserError
from espalier.exam.evaluate import Asking, examine_all
from espalier.exam.plan import plan
from espalier.exam.task import Question, Task
from espalier.exam.tasks import NoShots, Settings, make_task
from espalier.models.forward import TreeModel
from tests.exam.independent import encoded, model_of, tokenizer_of

QUIET = Asking(quiet=True)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Callable[[str], Path]) -> Any:
    return tokenizer_of(str(vocabulary("aquila_bpe")))


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> TreeModel:
    return model_of("qwen2", tokenizer, max_position_embeddings=8192)


def asked(task: Task) -> list[Question]:
    return [question for question in task.read() if not isinstance(question, LeftOut)]


def hand_made(exams: Path, name: str) -> list[tuple[str, tuple[str, ...]]]:
    """(prompt, references) of every question."""
    if name == "cmrc2018":
        data = json.loads((exams / "cmrc2018" / "dev.json").read_text("utf-8"))["data"]
        return [
            (f"阅读文章：{p['context']}\n问：{qa['question']}\n答：", tuple(dict.fromkeys(a["text"] for a in qa["answers"])))
            for article in data for p in article["paragraphs"] for qa in p["qas"]
        ]  # fmt: skip
    if name == "gsm8k":
        rows = [json.loads(x) for x in (exams / "gsm8k" / "test.jsonl").open(encoding="utf-8")]
        return [(f"Question: {row['question']}\nAnswer:", (row["answer"],)) for row in rows]
    if name == "math_bench":
        rows = [
            json.loads(x)
            for x in (exams / "math_bench" / "math_benchmarks_0710.jsonl").open(encoding="utf-8")
        ]
        cue = "\nReason step by step, and put the final answer within \\boxed{}.\nSolution:"
        return [(f"Problem: {row['prompt']}{cue}", (str(row["ground_truth"]),)) for row in rows]
    texts, titles = ((exams / "lcsts" / f"test.{kind}.txt").read_text("utf-8").strip().split("\n") for kind in ("src", "tgt"))  # fmt: skip
    return [
        (f"新闻：{text.strip()}\n标题：", (title.strip(),)) for text, title in zip(texts, titles, strict=True)
    ]


@pytest.mark.parametrize("name", ["cmrc2018", "gsm8k", "math_bench", "lcsts"])
def test_every_question_of_the_file_is_asked(name: str, layouts: Path) -> None:
    found = asked(make_task(name, Settings(layouts), shots=0))
    assert [(q.prompt, q.references) for q in found] == hand_made(layouts, name)
    assert len({q.id for q in found}) == len(found)


def test_the_earlier_layout_of_cmrc_is_read(shared: Path, tmp_path: Path) -> None:
    rows = [{"context_id": "A", "context_text": "北京是首都。", "qas": [
        {"query_id": "A_1", "query_text": "首都是哪里？", "answers": ["北京", "北京", "北京市"]}]}]  # fmt: skip
    (tmp_path / "cmrc2018").mkdir()
    (tmp_path / "cmrc2018" / "dev.json").write_text(json.dumps(rows), "utf-8")
    (question,) = asked(make_task("cmrc2018", Settings(tmp_path), shots=0))
    assert question.prompt == "阅读文章：北京是首都。\n问：首都是哪里？\n答：" and question.references == (
        "北京",
        "北京市",
    )
    for path in (shared / "data" / "cmrc2018" / "original_style").glob("*.json"):
        folder = tmp_path / path.stem / "cmrc2018"
        folder.mkdir(parents=True)
        (folder / "dev.json").write_bytes(path.read_bytes())
        assert asked(make_task("cmrc2018", Settings(folder.parent), shots=0))


def greedy(lm: Any, tokenizer: Any, prompt: str, most: int) -> str:
    """Plain `generate`, one prompt at a time."""
    with torch.no_grad():
        made = lm.generate(
            torch.tensor([encoded(tokenizer, prompt)]), max_new_tokens=most, do_sample=False, pad_token_id=0,
            attention_mask=None,
        )  # fmt: skip
    return tokenizer.decode(made[0, len(encoded(tokenizer, prompt)) :], skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("name", ["cmrc2018", "gsm8k", "lcsts"])
def test_answers_are_those_of_plain_generate(
    name: str, shots: int, layouts: Path, tokenizer: Any, model: TreeModel, tmp_path: Path
) -> None:
    planned = plan([name], [shots], Settings(layouts, limit=2))
    ((task, _),) = planned.tasks
    results = examine_all(model, tokenizer, planned, tmp_path, name="random", asking=QUIET)
    assert task.generation is not None
    lines = [json.loads(x) for x in (tmp_path / f"{name}.jsonl").open(encoding="utf-8")]
    before = model.lm.config._attn_implementation
    for line, (prompt, references) in zip(lines, hand_made(layouts, name), strict=False):
        assert line["prompt"] == prompt and tuple(line["references"]) == references
        prefix = results["prefixes"][line["prefix"]] if shots else ""
        model.lm.set_attn_implementation("eager")
        text = greedy(model.lm, tokenizer, prefix + prompt, task.generation.max_new_tokens)
        model.lm.set_attn_implementation(before)
        for mark in task.generation.stop:
            text = text.split(mark)[0]
        assert line["text"] == text.strip()
        assert line["metrics"] == task.generation.judge(line["text"], references)
        assert prefix.count(prompt[:3]) == shots


def test_cmrc_with_shots_is_another_exam_than_without(exams: Path) -> None:
    """Trap: the predecessors' few-shot reading exam never saw its shots; and shots are not questions of dev."""
    without, having = (asked(make_task("cmrc2018", Settings(exams, limit=5), shots=n)) for n in (0, 3))
    assert without[0].shots.text == "" and having[0].shots.text.count("阅读文章：") == 3
    dev = {prompt for prompt, _ in hand_made(exams, "cmrc2018")}
    assert not dev & {asked_ for asked_, _ in having[0].shots.pairs}


def test_an_answer_is_not_cut_at_the_colon_of_the_prompt() -> None:
    """Trap: decoding prompt and answer together and splitting at a half-width "答:" lost answers."""
    from espalier.exam.tasks.writing import EXAMS

    generation = EXAMS["cmrc2018"].generation
    assert generation.clean("答:是的，答：对") == "答:是的，答：对" and generation.stop == ("\n",)


@pytest.mark.slow
def test_any_file_of_chats_is_an_exam(shared: Path, tokenizer: Any, model: TreeModel, tmp_path: Path) -> None:
    path = shared / "data" / "belle_zh" / "Belle_open_source_1k.json"
    planned = plan([f"generation:{path}"], [None], Settings(Path(), limit=3))
    row = examine_all(model, tokenizer, planned, tmp_path, name="random", asking=QUIET)
    (found,) = row["tasks"].values()
    assert found["n"] == 3 and {"rouge_1", "rouge_l", "bleu", "exact_match"} <= set(found["metrics"])
    with pytest.raises(NoShots):
        make_task(f"generation:{path}", Settings(Path()), shots=2)


def test_earlier_turns_stand_before_the_last(tmp_path: Path) -> None:
    turns = [
        ("system", "Be brief."),
        ("user", "1+1?"),
        ("assistant", "2"),
        ("user", "2+2?"),
        ("assistant", "4"),
    ]
    path = tmp_path / "chats.jsonl"
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    path.write_text(json.dumps(row) + "\n", "utf-8")
    (found,) = asked(make_task(f"generation:{path}", Settings(Path()), shots=0))
    assert found.shots.text + found.prompt == "Be brief.\n1+1?\n2\n2+2?\n" and found.references == ("4",)


def test_parallel_files_of_other_lengths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lcsts").mkdir()
    (tmp_path / "lcsts" / "test.src.txt").write_text("a\nb\n", "utf-8")
    (tmp_path / "lcsts" / "test.tgt.txt").write_text("a\n", "utf-8")
    with pytest.raises(UserError, match="line 2 is in one of them only"):
        plan(["lcsts"], [0], Settings(tmp_path))


def test_a_cut_file_of_passages_names_its_line(tmp_path: Path, exams: Path) -> None:
    (tmp_path / "cmrc2018").mkdir()
    text = (exams / "cmrc2018" / "dev.json").read_text("utf-8")
    (tmp_path / "cmrc2018" / "dev.json").write_text(text[: len(text) // 2], "utf-8")
    with pytest.raises(UserError, match=r"dev\.json:\d+: broken JSON .* is the file whole"):
        plan(["cmrc2018"], [0], Settings(tmp_path))


def test_drcd_is_read_in_its_own_layout(tmp_path: Path) -> None:
    """Traditional Chinese, SQuAD's layout, ids of paragraphs beside those of questions."""
    asked_ = {
        "id": "1001-10-1",
        "question": "廣州位於何處？",
        "answers": [{"id": "1", "text": "珠江口", "answer_start": 5}],
    }
    whole = {"version": "1.3", "data": [{"title": "廣州", "id": "1001", "paragraphs": [
        {"context": "廣州位於珠江口。", "id": "1001-10", "qas": [asked_]}]}]}  # fmt: skip
    (tmp_path / "drcd").mkdir()
    (tmp_path / "drcd" / "DRCD_dev.json").write_text(json.dumps(whole, ensure_ascii=False), "utf-8")
    (question,) = asked(make_task("drcd", Settings(tmp_path), shots=0))
    assert (
        question.prompt == "阅读文章：廣州位於珠江口。\n问：廣州位於何處？\n答："
        and question.references == ("珠江口",)
    )
