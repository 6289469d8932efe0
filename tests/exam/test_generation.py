"""`generation:FILE`: short contexts, several drawn answers, every metric in the table, models side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from espalier.cli import app, guarded
from espalier.errors import UserError
from espalier.exam.evaluate import Asking, examine_all
from espalier.exam.judges.judge import judge_text
from espalier.exam.plan import plan
from espalier.exam.task import Drawing
from espalier.exam.tasks import Settings
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.saved import save_model
from espalier.report.page import write_report
from espalier.runs.examine import ExamOptions
from tests.exam.independent import model_of
from tests.exam.test_evaluate import lines

CONTEXT = 64
TALKS = [
    {"instruction": f"say {word}", "output": f"{word} and {word}"} for word in ("one", "two", "three", "four")
]
DRAWN = Drawing(temperature=1.5, answers=3, seed=7)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load.train_tokenizer([f"{row['instruction']} {row['output']}" for row in TALKS] * 9, 290)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> TreeModel:
    return model_of("llama", tokenizer, max_position_embeddings=CONTEXT)


@pytest.fixture(autouse=True)
def _judges() -> None:
    for library in ("rouge_score", "sacrebleu"):
        pytest.importorskip(library, reason="the judges of the extra `exams` are not installed")


def talks(folder: Path) -> Path:
    path = folder / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TALKS), "utf-8")
    return path


def written(
    model: TreeModel, tokenizer: Any, path: Path, out: Path, **settings: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    planned = plan([f"generation:{path}"], [None], Settings(Path(), **settings))
    results = examine_all(model, tokenizer, planned, out, name="random", asking=Asking())
    return results["tasks"]["generation_talks"], lines(out / "generation_talks.jsonl")


@pytest.mark.slow
def test_a_short_context_is_shared_by_question_and_answer_and_all_metrics_are_shown(
    model: TreeModel, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, found = written(model, tokenizer, talks(tmp_path), tmp_path / "out")
    assert row["n"] == 4 and (row["max_new_tokens"], row["wanted_new_tokens"]) == (CONTEXT // 2, 256)
    said, page = capsys.readouterr().out, write_report(tmp_path / "out").read_text("utf-8")
    assert "answers have at most 32 tokens, half of the model's context, instead of 256" in said
    for metric in ("rouge_1", "rouge_2", "rouge_l", "bleu", "exact_match", "perplexity"):
        value = row["metrics"][metric]
        assert re.search(rf"\b{metric}\s+{value:.3f}", said) and f"<code>{metric}</code>" in page
    capped, shorter = written(model, tokenizer, talks(tmp_path), tmp_path / "short", max_new_tokens=2)
    assert capped["max_new_tokens"] == 2 and capped["unended"] > 0
    assert all(a["text"].startswith(b["text"]) for a, b in zip(found, shorter, strict=True))
    assert [line["text"] for line in shorter] != [line["text"] for line in found]


def test_several_answers_are_drawn_by_the_question_and_their_mean_counts(
    model: TreeModel, tokenizer: Any, tmp_path: Path
) -> None:
    path = talks(tmp_path)
    drawn = {"drawing": DRAWN, "max_new_tokens": 6}
    row, found = written(model, tokenizer, path, tmp_path / "out", **drawn)
    assert all(len(set(line["texts"])) > 1 and line["text"] == line["texts"][0] for line in found)
    for line in found:
        each = [judge_text(text, tuple(line["references"])) for text in line["texts"]]
        assert line["metrics"] == pytest.approx({k: sum(one[k] for one in each) / 3 for k in each[0]})
    assert row["metrics"]["rouge_1"] == pytest.approx(sum(line["metrics"]["rouge_1"] for line in found) / 4)
    assert row["drawing"]["answers"] == 3
    _, fewer = written(model, tokenizer, path, tmp_path / "fewer", limit=2, **drawn)
    assert [line["texts"] for line in fewer] == [line["texts"] for line in found[:2]]
    other = Drawing(temperature=1.5, answers=3, seed=8)
    _, others = written(model, tokenizer, path, tmp_path / "out", max_new_tokens=6, drawing=other)
    assert [line["texts"] for line in others] != [line["texts"] for line in found]


def test_several_answers_that_would_be_one_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match=r"samples: 3 answers .* set a temperature"):
        Drawing(answers=3)
    exam = ExamOptions(model_name_or_path="run:sft", tasks=["generation:a.jsonl"], exam_samples=3)
    assert any("set a temperature" in problem for problem in exam.problems())


@pytest.mark.slow
def test_models_are_shown_side_by_side(
    model: TreeModel, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*TALKS[:2], {"instruction": "say ``` <b>x</b>", "output": "no & yes"}]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    names = []
    for name, one in (("first", model), ("second", model_of("gpt2", tokenizer))):
        save_model(tmp_path / name, one, tokenizer)
        names.append(str(tmp_path / name))
    out = tmp_path / "out"
    words = ["evaluate", *names, "--tasks", f"generation:{path}", "--out", str(out), "--side-by-side"]
    words += ["--max-new-tokens", "5"]
    assert guarded(lambda: app(words, standalone_mode=False)) == 0
    assert "side_by_side.html" in "".join(capsys.readouterr().out.split())
    text, page = (out / "side_by_side.md").read_text("utf-8"), (out / "side_by_side.html").read_text("utf-8")
    folders = [folder for folder in sorted(out.iterdir()) if folder.is_dir()]
    answers = [line for folder in folders for line in lines(folder / "generation_talks.jsonl")]
    assert len(answers) == 6
    for line in answers:
        assert f"text\n{line['text']}\n```" in text and f"text\n{line['references'][0]}\n```" in text
    assert text.count("**" + names[1]) == 3 and "````text\nsay ``` <b>x</b>" in text
    assert "<b>" not in page and "say ``` &lt;b&gt;x&lt;/b&gt;" in page and page.count("<tr>") == 4
    words = ["judge", str(out), "--url", "http://127.0.0.1:9", "--model", "none"]
    assert guarded(lambda: app(words, standalone_mode=False)) == 2
    assert "the judge cannot be asked" in " ".join(capsys.readouterr().err.split()), (
        "its files are what is read"
    )
    task = tmp_path / "choice.yaml"
    task.write_text(
        json.dumps({"data": "talks.jsonl", "question": "x", "candidates": ["a", "b"], "gold": "a"})
    )
    words = ["evaluate", names[0], "--tasks", str(task), "--out", str(tmp_path / "none"), "--side-by-side"]
    assert guarded(lambda: app(words, standalone_mode=False)) == 2
    assert "none of these exams has written answers" in " ".join(capsys.readouterr().err.split())
