"""A list of stages: references, skipping, going on, and what one changed option sets going again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import UserError
from espalier.runs import pipeline
from tests.stages.conftest import far
from tests.stages.conftest import weights as read

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def chain(options: Make, tmp_path: Path) -> Callable[..., Path]:
    """A file of sft, then dpo and an exam from what sft has made; `changes` by stage."""

    def make(**changes: dict[str, Any]) -> Path:
        first, second = options("sft", max_steps=2), options("dpo", max_steps=2)
        shared = {"output_dir": first["output_dir"]}
        questions = tmp_path / "questions.jsonl"
        rows = [{"question": f"{i} + 1 =", "candidates": ["1", "2", "3"], "gold": i} for i in range(3)]
        questions.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        task = tmp_path / "task.yaml"
        asked = {"name": "sums", "data": str(questions), "question": "{{ question }}", "candidates": "candidates",
                 "gold": "{{ gold }}"}  # fmt: skip
        task.write_text(json.dumps(asked), "utf-8")
        stages = [
            {**first, "name": "one"},
            {**second, "name": "two", "model_name_or_path": "run:one"},
            {"name": "exam", "stage": "evaluate", "model_name_or_path": "run:two", "tasks": [str(task)]},
        ]
        for stage in stages:
            stage.pop("output_dir", None)
            stage |= changes.get(str(stage["name"]), {})
        file = tmp_path / "chain.yaml"
        file.write_text(json.dumps({**shared, "stages": stages}), "utf-8")
        return file

    return make


def started(folder: Path) -> dict[str, float]:
    return {name: (folder / name / "summary.json").stat().st_mtime_ns for name in ("one", "two")}


@pytest.mark.slow
def test_a_chain_runs_is_skipped_and_starts_again_where_something_changed(
    chain: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.run(chain())
    folder = tmp_path / "run"
    assert json.loads((folder / "exam" / "results.json").read_text("utf-8"))["tasks"]["sums"]["n"] == 3
    assert (folder / "report.html").is_file() and (folder / "config.yaml").is_file()
    one, two = ({"output_dir": str(folder), "name": name, "stage": ""} for name in ("one", "two"))
    assert far(read(one), read(two)) > 0, "the second stage has trained what the first has made"

    before = started(folder)
    pipeline.run(chain())
    assert started(folder) == before, "all is finished"

    with pytest.raises(UserError, match=r"(?s)two: is finished.*pref_beta: 0.1 -> 0.3.*two.resume=false"):
        pipeline.run(chain(two={"pref_beta": 0.3}))
    assert started(folder) == before, "a refusal touches nothing"

    pipeline.run(chain(two={"pref_beta": 0.3, "resume": False}))
    after = started(folder)
    assert after["one"] == before["one"] and after["two"] > before["two"]

    other = {"learning_rate": 5e-4, "resume": False}
    capsys.readouterr()
    pipeline.run(chain(one=other, two={"pref_beta": 0.3}))
    last = started(folder)
    assert last["one"] > after["one"] and last["two"] > after["two"], "what came from the first stage is old"
    said = capsys.readouterr().err
    assert (
        "two: runs again" in said
        and "model_name_or_path: the content of model.safetensors has changed" in said
    )


def test_every_mistake_is_told_before_the_first_file_is_touched(
    chain: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="pref_bet"):
        pipeline.run(chain(two={"pref_bet": 0.3}))
    with pytest.raises(UserError, match="zero"):
        pipeline.run(chain(two={"model_name_or_path": "run:zero"}))
    with pytest.raises(UserError, match="there is no such folder"):
        pipeline.run(chain(two={"ref_model": str(tmp_path / "none")}))
    monkeypatch.setitem(sys.modules, "swanlab", None)
    with pytest.raises(UserError, match="report_to: swanlab"):
        pipeline.run(chain(two={"report_to": ["swanlab"]}))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_overrides_and_changes_reach_their_stage(chain: Callable[..., Path], tmp_path: Path) -> None:
    file = chain()
    pipeline.run(file, ["two.pref_beta=0.4"])
    assert "pref_beta: 0.4" in (tmp_path / "run" / "two" / "config.yaml").read_text("utf-8")
