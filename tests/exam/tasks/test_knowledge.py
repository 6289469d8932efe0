"""C-Eval, CMMLU and MMLU on their real files, against prompts and scores made once more by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import UserError
from espalier.exam.evaluate import Asking, evaluate, examine_all
from espalier.exam.plan import plan
from espalier.exam.task import Question
from espalier.exam.tasks import Settings, make_task
from espalier.exam.tasks.knowledge import subjects, submission
from espalier.models.saved import save_model
from tests.conftest import SAMPLES, Vocabulary
from tests.exam.independent import alone, encoded, model_of, tokenizer_of
from tests.exam.planted import planted

QUIET = Asking(quiet=True)
FILES = {
    "ceval": ("ceval/val/{}_val.csv", "ceval/dev/{}_dev.csv"),
    "cmmlu": ("cmmlu/test/{}.csv", "cmmlu/dev/{}.csv"),
    "mmlu": ("mmlu/data/test/{}_test.csv", "mmlu/data/dev/{}_dev.csv"),
}
SIZES = {"ceval": 52, "cmmlu": 67, "mmlu": 57}


def rows(path: Path, name: str) -> list[list[str]]:
    """[question, A, B, C, D, answer] of every row, whatever the exam's header."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        if name == "mmlu":
            return [[cell.strip() for cell in row] for row in csv.reader(stream)]
        found = [{key.lower(): value for key, value in row.items()} for row in csv.DictReader(stream)]
        return [[row[key].strip() for key in ("question", "a", "b", "c", "d", "answer")] for row in found]


def there(folder: Path, name: str) -> list[str]:
    """The subjects whose files a folder holds; the real one holds all."""
    keys = list(subjects(name)["subjects"])
    assert len(keys) == SIZES[name]
    found = [key for key in keys if (folder / FILES[name][0].format(key)).is_file()]
    assert len(found) == (2 if folder == SAMPLES / "exams" else SIZES[name])
    return found


def prompt(name: str, row: list[str], answers: str) -> str:
    question, a, b, c, d, _ = row
    head = "题目：" if name == "cmmlu" else ""
    options = f"\nA. {a}\nB. {b}\nC. {c}\nD. {d}" if answers == "letter" else ""
    cue = {"ceval": "答案：", "cmmlu": "答案是：", "mmlu": "Answer:"}[name]
    return f"{head}{question}{options}\n{cue}"


def candidates(name: str, row: list[str], answers: str) -> list[str]:
    space = " " if name == "mmlu" else ""
    return [space + text for text in (list("ABCD") if answers == "letter" else row[1:5])]


def intro(name: str, title: str) -> str:
    return {
        "ceval": f"以下是中国关于{title}考试的单项选择题，请选出其中的正确答案。\n\n",
        "cmmlu": f"以下是关于{title}的单项选择题，请直接给出正确答案的选项。\n\n",
        "mmlu": f"The following are multiple choice questions (with answers) about {title}.\n\n",
    }[name]


@pytest.mark.parametrize("name", sorted(SIZES))
def test_every_question_of_every_subject_is_read(name: str, layouts: Path) -> None:
    found = [q for q in make_task(name, Settings(layouts), shots=5).read() if isinstance(q, Question)]
    keys = there(layouts, name)
    assert {q.group for q in found} == set(keys)
    assert len({q.id for q in found}) == len(found)
    at = 0
    for key in keys:
        for row in rows(layouts / FILES[name][0].format(key), name):
            question = found[at]
            at += 1
            assert question.prompt == prompt(name, row, "letter"), question.source
            assert question.gold == "ABCD".index(row[5]), question.source
    assert at == len(found)


def test_none_and_na_are_answers(shared: Path) -> None:
    texts = {
        candidate.text.strip()
        for q in make_task("mmlu", Settings(shared / "data", answers="text"), shots=0).read()
        if isinstance(q, Question)
        for candidate in q.candidates
    }
    assert "None" in texts and "nan" not in texts


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["letter", "text"])
@pytest.mark.parametrize("name", sorted(SIZES))
def test_an_independent_scorer_agrees(
    name: str, answers: Any, layouts: Path, vocabulary: Callable[[str], Path], tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(str(vocabulary("gpt2" if name == "mmlu" else "aquila_bpe")))
    model = model_of("llama", tokenizer, max_position_embeddings=8192)
    planned = plan([name], [0, 5], Settings(layouts, limit=1, answers=answers))
    results = examine_all(model, tokenizer, planned, tmp_path, name="random", asking=QUIET)
    titles = subjects(name)["subjects"]
    for shots in (0, 5):
        lines = [json.loads(x) for x in (tmp_path / f"{name}_{shots}shot.jsonl").open(encoding="utf-8")]
        assert len(lines) == len(there(layouts, name))
        for line in lines[::10]:
            key = line["subject"]
            row = rows(layouts / FILES[name][0].format(key), name)[0]
            solved = rows(layouts / FILES[name][1].format(key), name)[:shots]
            prefix = intro(name, titles[key])
            for one in solved:
                said = candidates(name, one, answers)["ABCD".index(one[5])]
                prefix += prompt(name, one, answers) + said + "\n\n"
            assert results["prefixes"][line["prefix"]] == prefix
            assert line["prompt"] == prompt(name, row, answers)
            texts = candidates(name, row, answers)
            found = [alone(model.lm, tokenizer, prefix + line["prompt"], text) for text in texts]
            assert line["scores"] == pytest.approx([s for s, _ in found], abs=1e-4, rel=1e-6)
            values = [s if answers == "letter" else s / n for s, n in found]
            assert line["prediction"] == values.index(max(values))
            assert line["gold"] == "ABCD".index(row[5])


@pytest.mark.slow
def test_a_model_that_knows_gets_everything_and_averages_are_by_subject(
    shared: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(str(vocabulary("aquila_bpe")))
    planned = plan(["ceval"], [0], Settings(shared / "data", limit=2))
    ((task, _),) = planned.tasks
    questions = [q for q in task.read() if isinstance(q, Question)]
    hard = subjects("ceval")["parts"]["Hard"]
    texts = []
    for q in questions:
        assert q.gold is not None
        said = (q.gold + (q.group in hard)) % 4  # wrong on purpose in the hard subjects
        texts.append(encoded(tokenizer, q.shots.text + q.prompt + q.candidates[said].text))
    row = examine_all(
        planted(len(tokenizer), texts), tokenizer, planned, tmp_path, name="planted", asking=QUIET
    )
    found = row["tasks"]["ceval"]
    wrong = sum(q.group in hard for q in questions)
    assert found["metrics"]["accuracy"] == pytest.approx(1 - wrong / len(questions))
    assert found["metrics"]["macro_accuracy"] == pytest.approx(1 - len(hard) / 52)
    assert found["parts"]["Hard"]["accuracy"] == 0.0 and found["parts"]["Humanities"]["accuracy"] == 1.0
    assert len(found["subjects"]) == 52 and len(hard) == 8


def test_ids_of_a_submission_are_whole_numbers() -> None:
    answers = [
        (Question(f"law-{name}", "x", group="law"), place) for place, name in enumerate(["0.0", "1.0", "10"])
    ]
    assert json.loads(submission(answers)) == {"law": {"0": "A", "1": "B", "10": "C"}}


@pytest.mark.slow
def test_the_test_set_gives_a_file_for_submission(
    shared: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(str(vocabulary("aquila_bpe")))
    save_model(tmp_path / "model", model_of("qwen2", tokenizer), tokenizer)
    settings = Settings(shared / "data", split="test")
    evaluate(str(tmp_path / "model"), ["ceval"], out=tmp_path / "out", settings=settings, asking=QUIET)
    found = json.loads((tmp_path / "out" / "ceval.submission.json").read_text("utf-8"))
    example = json.loads((shared / "data" / "ceval" / "submission_example.json").read_text("utf-8"))
    assert set(found) == set(example)
    lines = [json.loads(x) for x in (tmp_path / "out" / "ceval.jsonl").open(encoding="utf-8")]
    for key, answers in found.items():
        mine = [line for line in lines if line["subject"] == key]
        assert list(answers.values()) == ["ABCD"[line["prediction"]] for line in mine]
        assert list(answers) == [row["id"] for row in csv.DictReader(
            (shared / "data" / "ceval" / "test" / f"{key}_test.csv").open(encoding="utf-8-sig", newline=""))]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('a,1,2,3,4,A\n"b,1,2,3,4,B\n', r"test.csv:2"),
        ("a,1,2,3,4,A\nb,1,2,3,B\n", r"test.csv:2: 5 cells; wanted 6"),
        ("a,1,2,3,4,0\n", r"test.csv:1: the answer is '0'; wanted A, B, C or D"),
    ],
)
def test_a_broken_row_is_named(text: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "mmlu" / "test").mkdir(parents=True)
    (tmp_path / "mmlu" / "test" / "anatomy_test.csv").write_text(text, "utf-8")
    with pytest.raises(UserError, match=wanted):
        plan(["mmlu"], [0], Settings(tmp_path))
