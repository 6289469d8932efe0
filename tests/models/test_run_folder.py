"""A run's folder stands for the model of its last stage, and for none where the run is not finished."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from espalier.errors import UserError
from espalier.models.adapters.kinds import add_lora
from espalier.models.forward import TreeModel
from espalier.models.load import load_lm, train_tokenizer
from espalier.models.probe import probe
from espalier.models.run_folder import find_model
from espalier.models.saved import save_model
from tests.test_cli import call

Tiny = Callable[..., nn.Module]


def stage(folder: Path, *, status: str = "done", started: str = "2026-01-01 10:00:00") -> Path:
    """What a stage leaves behind, but for the numbers in its model."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}", "utf-8")
    summary = {"stage": "sft", "status": status, "started": started, "steps": 3, "total_steps": 40}
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    return folder


def pipeline(run: Path, *names: str) -> None:
    stages = [{"name": name, "stage": "evaluate" if name == "exam" else "sft"} for name in names]
    (run / "config.yaml").write_text(json.dumps({"stages": stages}), "utf-8")  # JSON is YAML


def found(name: Path) -> tuple[str, list[str]]:
    lines: list[str] = []
    return find_model(str(name), lines.append), lines


def test_the_stage_that_began_last_is_taken_and_named(tmp_path: Path) -> None:
    stage(tmp_path / "run" / "z", started="2026-01-01 10:00:00")
    last = stage(tmp_path / "run" / "b", started="2026-01-02 09:00:00")
    stage(tmp_path / "run" / "a", started="2025-12-31 23:00:00")
    name, lines = found(tmp_path / "run")
    assert name == str(last / "model")
    assert lines == [f"{tmp_path / 'run'}: the model of its last stage is taken, {last / 'model'}"]
    assert found(last)[0] == name, "a stage's own folder"
    assert found(tmp_path / "run" / "z")[0] == str(tmp_path / "run" / "z" / "model")


def test_stages_of_one_second_stand_in_the_order_of_the_pipeline(tmp_path: Path) -> None:
    for name in ("sft", "dpo", "again"):
        stage(tmp_path / name)
    pipeline(tmp_path, "sft", "again", "dpo", "exam")
    assert found(tmp_path)[0] == str(tmp_path / "dpo" / "model")
    pipeline(tmp_path, "dpo", "again", "sft")
    assert found(tmp_path)[0] == str(tmp_path / "sft" / "model")


def test_what_is_no_run_is_left_as_it_is(tmp_path: Path) -> None:
    model = stage(tmp_path / "run") / "model"
    shutil.copy(tmp_path / "run" / "summary.json", model)
    (tmp_path / "other" / "some").mkdir(parents=True)
    (tmp_path / "other" / "some" / "summary.json").write_text('{"name": "of another program"}', "utf-8")
    (tmp_path / "other" / "config.yaml").write_text("- [", "utf-8")
    for name in (str(model), str(tmp_path / "other"), str(tmp_path / "nowhere"), "some/hub-id"):
        assert find_model(name, say=pytest.fail) == name


@pytest.mark.parametrize(
    ("status", "names", "message"),
    [
        (
            "stopped",
            ["one", "two"],
            r"run: this run is not finished: its stage two is stopped at step 3 of 40",
        ),
        (
            "running",
            [],
            r"its stage two is running at step 3 of 40.*name the model of a stage that is: \S*one\.$",
        ),
        ("done", ["one", "two", "three", "four"], r"its stage three is not begun"),
    ],
)
def test_an_unfinished_run_is_refused_by_name(
    status: str, names: list[str], message: str, tmp_path: Path
) -> None:
    stage(tmp_path / "run" / "one")
    stage(tmp_path / "run" / "two", status=status, started="2026-01-02 10:00:00")
    if names:
        pipeline(tmp_path / "run", *names)
    with pytest.raises(UserError, match=message) as refusal:
        found(tmp_path / "run")
    shown = str(refusal.value)
    assert str(tmp_path / "run" / "one") in shown and "Run the same command again" in shown
    assert found(tmp_path / "run" / "one")[0].endswith("one/model"), "what is finished of it can be named"


def test_a_model_that_is_gone_is_said(tmp_path: Path) -> None:
    shutil.rmtree(stage(tmp_path / "sft") / "model")
    with pytest.raises(UserError, match=r"sft is finished, and its model \S*model is no longer there"):
        found(tmp_path)


@pytest.mark.slow
def test_commands_take_a_run_for_its_model(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = tiny("llama", vocab_size=300)
    tokenizer = train_tokenizer(["1+1= 2, 2+2= 4"] * 3, 290)
    (tmp_path / "base").mkdir()
    save_model(tmp_path / "base", TreeModel(lm, probe(lm)), tokenizer)
    run = tmp_path / "run"
    model = stage(run / "sft") / "model"
    (model / "config.json").unlink()
    adapted = add_lora(load_lm(str(tmp_path / "base")), rank=2, alpha=4, dropout=0, target=None, bias="none")
    save_model(model, TreeModel(adapted, probe(adapted)), tokenizer)
    task: dict[str, Any] = {
        "name": "sums",
        "data": "sums.jsonl",
        "question": "{{ q }}",
        "candidates": ["2", "3"],
    }
    (tmp_path / "sums.jsonl").write_text('{"q": "1+1=", "answer": "2"}', "utf-8")
    (tmp_path / "sums.yaml").write_text(json.dumps({**task, "gold": "{{ answer }}"}), "utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("/exit\n"))
    for words in (
        ["chat", str(run)],
        [
            "evaluate",
            str(run),
            "--tasks",
            str(tmp_path / "sums.yaml"),
            "--out",
            str(tmp_path / "exam"),
            "--dtype",
            "bfloat16",
        ],
        ["merge", str(run), str(tmp_path / "merged")],
        ["inspect", str(run), "--no-probe"],
    ):
        assert call(*words) == 0, words[0]
        line = capsys.readouterr().err.replace("\n", " ")
        assert line.count("the model of its last stage is taken") == 1, words[0]
    results = json.loads((tmp_path / "exam" / "results.json").read_text("utf-8"))
    assert (results["model"], results["dtype"]) == (str(model), "bfloat16")
    assert (tmp_path / "merged" / "config.json").is_file()
