"""The table of all exams against one written by hand: `espalier scores`, in the report, as markdown and csv."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from espalier.cli import app, guarded
from espalier.exam.tasks import EXAMS, TYPES
from espalier.report.page import write_report


def row(metric: str, value: float, stderr: float | None, shots: int = 0, **more: Any) -> dict[str, Any]:
    metrics = {metric: value, f"{metric}_stderr": stderr}
    return {"n": 200, "shots": shots, "metrics": metrics, "type": "cloze", "method": "logprob"} | more


@pytest.fixture
def exams(tmp_path: Path) -> Path:
    """Two models: the second one better with solved examples, of which not all fitted; a number each that is alone."""
    results = {
        "base": {
            "chid_0shot": row("accuracy", 0.25, 0.03, chance=0.1),
            "chid_3shot": row("accuracy", 0.5, 0.035, shots=3, chance=0.1),
            "text": row("perplexity", 12.0, 1.5, type="language modelling", method="likelihood"),
            "alone": row("f1", 0.125, None, n=1, type="a|b"),
        },
        "tuned": {
            "chid_0shot": row("accuracy", 0.25, 0.03, chance=0.1, n=199),
            "chid_3shot": row("accuracy", 0.75, 0.031, shots=3, mean_shots=0.4, chance=0.1),
            "text": row("perplexity", 8.0, 1.25, type="language modelling", method="likelihood"),
            "unknown": {"n": 3, "shots": 0, "metrics": {}},
        },
    }
    for name, tasks in results.items():
        (tmp_path / name).mkdir()
        whole = {"model": f"runs/{name}/model", "layout": "tree", "tasks": tasks}
        (tmp_path / name / "results.json").write_text(json.dumps(whole), "utf-8")
    return tmp_path


MARKDOWN = """\
| task | type | method | metric | n | chance | base/model, zero-shot | tuned/model, zero-shot | base/model, 3-shot | tuned/model, 3-shot |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| chid | cloze | logprob | accuracy | 200, 199 | 0.100 | 0.250±0.030 | 0.250±0.030 | 0.500±0.035 | **0.750±0.031 (3→0.4 shots)** |
| text | language modelling | likelihood | perplexity | 200 | – | 12.000±1.500 | **8.000±1.250** | – | – |
| alone | a\\|b | logprob | f1 | 1 | – | 0.125 | – | – | – |
"""


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert guarded(lambda: app(["scores", *words], standalone_mode=False)) == 0
    return capsys.readouterr().out


def test_the_table_is_the_one_written_by_hand(exams: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown([str(exams), "--as", "markdown"], capsys) == MARKDOWN
    rows = list(csv.DictReader(io.StringIO(shown([str(exams), "--as", "csv"], capsys))))
    assert len(rows) == 7 and [(r["task"], r["model"]) for r in rows if r["best"] == "1"] == [
        ("chid", "tuned/model"),
        ("text", "tuned/model"),
    ]
    assert (rows[3]["shots"], rows[3]["value"], rows[3]["n"], rows[6]["stderr"]) == (
        "3→0.4",
        "0.75",
        "200",
        "",
    )
    said = shown([str(exams / "base"), str(exams / "tuned")], capsys)
    assert "chid: type cloze · method logprob · metric accuracy · n 200, 199 · chance 0.100" in " ".join(
        said.split()
    )
    (line,) = [line.split() for line in said.splitlines() if "0.750" in line]
    assert line == ["tuned/model", "0.250±0.030", "0.750±0.031", "(3→0.4", "shots)"]
    assert "…" not in said


def test_the_report_has_the_table_with_the_best_in_bold(exams: Path) -> None:
    page = write_report(exams).read_text("utf-8")
    assert "<b>0.750±0.031 (3→0.4 shots)</b>" in page and "<b>8.000±1.250</b>" in page
    assert "<b>0.250" not in page and page.count("tuned/model, 3-shot") == 1


def test_two_exams_of_one_model_are_told_apart_by_their_folders(
    exams: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (exams / "tuned" / "results.json").write_text(
        (exams / "base" / "results.json").read_text("utf-8"), "utf-8"
    )
    said = shown([str(exams), "--as", "markdown"], capsys)
    assert (
        f"base/model ({exams}/tuned), zero-shot" in said and f"base/model ({exams}/base), zero-shot" in said
    )


def test_a_folder_without_a_number_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"model": "m", "tasks": {}}), "utf-8")
    for words, wanted in (
        ([str(tmp_path)], "no exam with a number"),
        ([str(tmp_path), "--as", "html"], "wanted table"),
    ):
        assert guarded(lambda given=words: app(["scores", *given], standalone_mode=False)) == 2
        assert wanted in " ".join(capsys.readouterr().err.split())


def test_types_are_those_of_exams_that_there_are() -> None:
    assert set(TYPES) <= set(EXAMS)
