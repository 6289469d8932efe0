"""The example tasks can be asked as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.exam.task import load_task

EXAMPLES = Path(__file__).parents[2] / "examples" / "exams"


@pytest.mark.parametrize("name", ["common_sense_zh", "short_answers_en"])
def test_an_example_has_twelve_questions_and_its_shots_are_none_of_them(name: str) -> None:
    task = load_task(EXAMPLES / f"{name}.yaml")
    assert task.name == name and len(task.questions) == 12 and task.shots == 2
    assert not [question.prompt for question in task.questions if question.prompt in task.prefix]
    assert all(question.gold is not None or question.references for question in task.questions)


def test_no_place_is_right_most_of_the_time() -> None:
    golds = [question.gold for question in load_task(EXAMPLES / "common_sense_zh.yaml").questions]
    assert max(golds.count(place) for place in range(3)) <= len(golds) // 2
