"""What does not fit into a model's context, or has no right answer: left out by name, counted, and said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from espalier.checking.mathematics import judge_number
from espalier.errors import Stopped, UserError
from espalier.exam import run
from espalier.exam.evaluate import Asking, examine_all
from espalier.exam.plan import plan
from espalier.exam.task import Overlong
from espalier.exam.tasks import Settings
from espalier.exam.tasks.own_task import load_task
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.report.page import write_report
from tests.exam.independent import model_of
from tests.exam.tasks.test_own_task import ROWS, questions, task_file
from tests.exam.test_evaluate import _Stop, lines

CONTEXT = 48


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load.train_tokenizer([row["q"] + " " + row["answer"] for row in ROWS] * 5, 280)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> TreeModel:
    return model_of("llama", tokenizer, max_position_embeddings=CONTEXT)


def asked_with(
    model: TreeModel, tokenizer: Any, name: str, out: Path, *, shots: int | None = None, **settings: Any
) -> dict[str, Any]:
    planned = plan([name], [shots], Settings(**{"data": Path(), **settings}))
    results = examine_all(model, tokenizer, planned, out, name="random", asking=Asking())
    (row,) = results["tasks"].values()
    return dict(row)


def test_solved_examples_that_did_not_fit_are_in_the_table_and_on_the_page(
    model: TreeModel, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"q": "so " * (5 * i) + row["q"]} for i, row in enumerate(ROWS[:5])]
    path = task_file(tmp_path, rows, train="train.jsonl")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[5:]), "utf-8")
    fitting = []
    for question in questions(load_task(path, shots=3)):
        shots = question.shots
        while (
            max(tokens(tokenizer, shots.text + question.prompt, c.text) for c in question.candidates)
            > CONTEXT
            and shots.pairs
        ):
            shots = shots.fewer()
        fitting.append(len(shots.pairs))
    mean = sum(fitting) / len(fitting)
    assert 0 < mean < 3 and 3 in fitting
    row = asked_with(model, tokenizer, str(path), tmp_path / "out", shots=3)
    assert row["mean_shots"] == pytest.approx(mean) and row["shots"] == 3
    assert row["shortened"]["fewer_shots"] == sum(n < 3 for n in fitting)
    said = capsys.readouterr().out
    page = write_report(tmp_path / "out").read_text("utf-8")
    for text in (said, page):
        assert f"3→{mean:.1f}" in text and "ask with fewer (--shots)" in text


def tokens(tokenizer: Any, before: str, candidate: str) -> int:
    """Places that are computed: the last token is a label only."""
    return len(tokenizer(before + candidate)["input_ids"]) - 1


LONG = {"q": "1 + 1 =", "options": ["2", "no " * CONTEXT], "answer": "2"}
WORDY = {"q": "so " * CONTEXT + "1 + 1 =", "options": ["2", "3"], "answer": "2"}


@pytest.mark.parametrize(("overlong", "left_out"), [("trim", [3]), ("leave_out", [3, 5])])
def test_one_long_question_is_left_out_by_name_and_a_stop_changes_nothing(
    overlong: Overlong,
    left_out: Sequence[int],
    model: TreeModel,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = task_file(tmp_path, [*ROWS[:2], LONG, ROWS[2], WORDY, ROWS[3]])
    row = asked_with(model, tokenizer, str(path), tmp_path / "out", overlong=overlong)
    assert row["n"] == 6 - len(left_out) and row["shortened"]["too_long"] == len(left_out)
    assert row["first_too_long"] == f"3 ({tmp_path / 'sums.jsonl'}:3)"
    assert row["shortened"].get("cut", 0) == 2 - len(left_out)
    found = lines(tmp_path / "out" / "sums.jsonl")
    assert [number for number, line in enumerate(found, 1) if "left_out" in line] == list(left_out)
    assert found[2]["source"].endswith("sums.jsonl:3") and "scores" not in found[2]
    assert f"{len(left_out)} questions are left out" in " ".join(capsys.readouterr().out.split())

    monkeypatch.setattr(run, "BLOCK", 1)
    asked = iter([False, False, True] + [False] * 9)
    monkeypatch.setattr("espalier.exam.evaluate.StopSignal", lambda: _Stop(asked))
    with pytest.raises(Stopped, match="after 3 questions"):
        asked_with(model, tokenizer, str(path), tmp_path / "parts", overlong=overlong)
    again = asked_with(model, tokenizer, str(path), tmp_path / "parts", overlong=overlong)
    assert again | {"seconds": 0} == row | {"seconds": 0, "tokens_computed": again["tokens_computed"]}
    parts = lines(tmp_path / "parts" / "sums.jsonl")
    assert [line.keys() for line in parts] == [line.keys() for line in found]
    assert [line.get("prediction") for line in parts] == [line.get("prediction") for line in found]


@pytest.mark.parametrize("row", [LONG, WORDY], ids=["candidate", "question"])
def test_error_names_the_first_long_question(
    row: dict[str, Any], model: TreeModel, tokenizer: Any, tmp_path: Path
) -> None:
    path = task_file(tmp_path, [*ROWS[:2], row])
    with pytest.raises(UserError, match=r"question 3 \(.*sums\.jsonl:3\) does not fit"):
        asked_with(model, tokenizer, str(path), tmp_path / "out", overlong="error")
    with pytest.raises(UserError, match=r"no question fits .*the first 1 \(.*sums\.jsonl:1\)"):
        asked_with(model, tokenizer, str(task_file(tmp_path, [LONG])), tmp_path / "none")


def test_an_answer_that_is_too_long_to_be_rated_is_left_out(
    model: TreeModel, tokenizer: Any, tmp_path: Path
) -> None:
    pairs = [
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
        {"prompt": "1", "chosen": "2", "rejected": "3 " * 60},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    rater = TreeModel(model.lm, model.traits, ScalarHead(32)).eval()
    row = asked_with(rater, tokenizer, f"reward:{tmp_path / 'pairs.jsonl'}", tmp_path / "out")
    assert row["n"] == 1 and row["first_too_long"].endswith("pairs.jsonl:2)")


def test_rows_that_cannot_be_judged_are_not_in_n(
    model: TreeModel, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        judge_number("it is 3", ("#### 3",)) == {"accuracy": 1.0} and judge_number("it is 3", ("none",)) == {}
    )
    (tmp_path / "gsm8k").mkdir()
    answers = ["1 + 1 = 2\n#### 2", "nobody knows", "#### 5", ""]
    rows = [
        json.dumps({"question": f"{i} + 1 =", "answer": answer}) + "\n" for i, answer in enumerate(answers)
    ]
    (tmp_path / "gsm8k" / "test.jsonl").write_text("".join(rows), "utf-8")
    row = asked_with(model, tokenizer, "gsm8k", tmp_path / "out", data=tmp_path)
    assert row["n"] == 2 and row["without_answer"] == 2
    assert "gsm8k: 2 questions have no right answer" in capsys.readouterr().out
