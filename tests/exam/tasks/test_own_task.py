"""A user's YAML becomes questions, or one clear message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from espalier.data.records import LeftOut
from espalier.errors import UserError
from espalier.exam.task import LIKELIEST, Drawing, Question, Task
from espalier.exam.tasks.own_task import load_task

ROWS = [{"q": f"{a} + {b} =", "options": [str(a + b), str(a + b + 1)], "answer": str(a + b)}
        for a in range(1, 4) for b in range(1, 4)]  # fmt: skip
TASK = {
    "name": "sums",
    "data": "sums.jsonl",
    "question": "{{ q }}",
    "candidates": "options",
    "gold": "answer",
}
EXAMPLES = Path(__file__).parents[3] / "examples" / "exams"


def task_file(folder: Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> Path:
    """A task and its data; a change to None takes a key away."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "sums.jsonl").write_text(text, "utf-8")
    (folder / "train.jsonl").write_text(text.replace(" = ", " is "), "utf-8")
    settings = {k: v for k, v in {**TASK, **changes}.items() if v is not None}
    (folder / "sums.yaml").write_text(json.dumps(settings), "utf-8")
    return folder / "sums.yaml"


def questions(task: Task) -> list[Question]:
    return [question for question in task.read() if not isinstance(question, LeftOut)]


def test_fields_become_questions(tmp_path: Path) -> None:
    task = load_task(task_file(tmp_path, train="train.jsonl"), shots=2)
    first = questions(task)[0]
    assert (first.prompt, first.gold, [c.text for c in first.candidates]) == ("1 + 1 =", 0, [" 2", " 3"])
    assert first.source.endswith("sums.jsonl:1")
    assert len({q.shots for q in questions(task)}) == 1
    assert all(f"{asked}{answer}\n\n" in first.shots.text for asked, answer in first.shots.pairs)


def test_written_candidates_have_labels_and_columns_have_none(tmp_path: Path) -> None:
    fixed = load_task(task_file(tmp_path, candidates=[" yes", " no"], gold="{{ 'yes' }}"))
    assert [c.label for c in questions(fixed)[0].candidates] == ["yes", "no"]
    own = load_task(task_file(tmp_path, candidates=["{{ options[0] }}", "{{ options[1] }}"]))
    assert [c.label for c in questions(own)[0].candidates] == ["", ""]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"questoin": "x"}, "did you mean `question`"),
        ({"question": "{{ query }}"}, "sums.jsonl:1"),
        ({"gold": "7"}, "is no candidate"),
        ({"candidates": "choices"}, "the data has q, options, answer"),
        ({"gold": None}, "`gold` is missing"),
        ({"shots": 2}, "no `train` file"),
        ({"shots": 100, "train": "train.jsonl"}, "100 shots need as many"),
        ({"normalise": "max"}, "wanted sum or mean"),
        ({"train": "sums.jsonl"}, "same file"),
        ({"generation": {"references": "answer"}}, "one of them"),
    ],
)
def test_a_wrong_task_file_says_what_to_do(changes: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        questions(load_task(task_file(tmp_path, **changes)))
    assert wanted in str(error.value)


def test_a_missing_task_file_names_a_near_one(tmp_path: Path) -> None:
    task_file(tmp_path)
    with pytest.raises(UserError, match=r"Did you mean .*sums\.yaml"):
        load_task(tmp_path / "sum.yaml")


def test_a_number_as_gold_is_an_index_and_a_text_is_a_text(tmp_path: Path) -> None:
    rows = [{"q": "x", "options": ["1", "2", "3"], "answer": value} for value in (1, "1")]
    assert [q.gold for q in questions(load_task(task_file(tmp_path, rows)))] == [1, 0]


def test_one_stop_text_is_one(tmp_path: Path) -> None:
    generation = {"references": "answer", "stop": "END"}
    task = load_task(task_file(tmp_path, candidates=None, gold=None, generation=generation))
    assert task.generation is not None and task.generation.stop == ("END",)
    assert task.generation.drawing == LIKELIEST
    drawn = {**generation, "temperature": 1, "samples": 4, "top_p": 0.9}
    task = load_task(task_file(tmp_path, candidates=None, gold=None, generation=drawn))
    assert task.generation is not None and task.generation.drawing == Drawing(1, 0.9, 0, 4, 42)
    for wrong, words in (
        ({"samples": 4}, "would all be the same one"),
        ({"temperature": "warm"}, r"generation\.temperature is 'warm'; wanted a number"),
        ({"temperature": -1}, "temperature is -1, out of its range"),
        ({"top_p": 5}, "top_p is 5, out of its range"),
        ({"samples": 1.5}, "wanted a whole number"),
    ):
        with pytest.raises(UserError, match=words):
            load_task(task_file(tmp_path, candidates=None, gold=None, generation={**generation, **wrong}))


@pytest.mark.parametrize("name", ["common_sense_zh", "short_answers_en"])
def test_an_example_has_twelve_questions_and_its_shots_are_none_of_them(name: str) -> None:
    task = load_task(EXAMPLES / f"{name}.yaml")
    found = questions(task)
    assert task.name == name and len(found) == 12 and task.shots == 2
    assert not [q.prompt for q in found if q.prompt in q.shots.text]
    assert all(q.gold is not None or q.references for q in found)


def test_no_place_is_right_most_of_the_time() -> None:
    golds = [q.gold for q in questions(load_task(EXAMPLES / "common_sense_zh.yaml"))]
    assert max(golds.count(place) for place in range(3)) <= len(golds) // 2
