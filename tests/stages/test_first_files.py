"""Files that `espalier init` and `espalier rlhf` write: looked at, then run in a small form."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml

from espalier import config
from espalier.commands.init.comments import COMMENTS
from espalier.commands.init.recipe import GOALS
from tests.test_cli import call

DATA = {"pretrain": "pretrain", "sft": "sft_train", "reward": "pref_train", "dpo": "pref_train", "kto": "called_train",
        "ppo": "prompts", "grpo": "prompts"}  # fmt: skip
SMALL = [
    "max_steps=1",
    "cutoff_len=128",
    "per_device_train_batch_size=4",
    "val_size=8",
    "samples=0",
]


def task(folder: Path) -> str:
    rows = [{"question": f"{i} + 1 =", "candidates": ["1", "2", "3"], "gold": i} for i in range(3)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    asked = {"name": "sums", "data": str(folder / "questions.jsonl"), "question": "{{ question }}",
             "candidates": "candidates", "gold": "{{ gold }}"}  # fmt: skip
    (folder / "task.yaml").write_text(json.dumps(asked), "utf-8")
    return str(folder / "task.yaml")


def words(goal: str, world: Path, folder: Path) -> list[str]:
    data = task(folder) if goal == "evaluate" else str(world / f"{DATA[goal]}.jsonl")
    model = [] if goal == "pretrain" else ["--model", str(world / "base")]
    reward = {"ppo": ["--reward", str(world / "judge")], "grpo": ["--reward", "brevity"]}.get(goal, [])
    return ["--goal", goal, *model, "--data", data, *reward, "--hardware", "cpu", "--yes"]


@pytest.mark.slow
@pytest.mark.parametrize("goal", GOALS)
def test_each_goal_is_written_looked_at_and_run(
    goal: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init", *words(goal, world, tmp_path), "--language", "zh") == 0
    assert f"espalier run {goal}.yaml" in capsys.readouterr().out
    assert call("inspect", f"{goal}.yaml") == 0
    changed = [] if goal == "evaluate" else list(SMALL)
    changed += ["max_new_tokens=4"] if goal in ("ppo", "grpo") else []
    changed += ["vocab_size=300", "model_config.hidden_size=32"] if goal == "pretrain" else []
    assert call("run", f"{goal}.yaml", *changed) == 0, capsys.readouterr().err
    made = next(iter(Path("runs", goal).rglob("results.json" if goal == "evaluate" else "summary.json")))
    assert made.is_file()


def test_answers_from_a_pipe_are_those_of_the_options(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("kto\nbase\na.jsonl, b.jsonl\n\nzh\n"))
    assert call("init", "--out", "asked.yaml") == 0
    assert capsys.readouterr().err.count(":") >= 5, "five questions"
    given = ["--goal", "kto", "--model", "base", "--data", "a.jsonl", "--data", "b.jsonl", "--language", "zh"]
    assert call("init", *given, "--yes", "--out", "given.yaml") == 0
    asked, options = (Path(name).read_text("utf-8") for name in ("asked.yaml", "given.yaml"))
    assert asked == options.replace("given.yaml", "asked.yaml") and "好或坏" in asked
    assert yaml.safe_load(asked)["dataset"] == ["a.jsonl", "b.jsonl"]
    assert call("init", *given, "--yes", "--language", "en", "--out", "english.yaml") == 0
    assert yaml.safe_load(Path("english.yaml").read_text("utf-8")) == yaml.safe_load(options)


@pytest.mark.parametrize(
    ("typed", "given", "told"),
    [
        ("what\n", [], "--goal what: wanted one of pretrain"),
        ("sft\n", [], "input ended before an answer. Give --model"),
        ("sft\n\n", [], "Give --model"),
        ("", ["--goal", "grpo", "--model", "m", "--data", "d", "--yes"], "give --reward"),
        ("", ["--goal", "dpo", "--model", "new", "--data", "d", "--yes"], "begins from a trained model"),
        (
            "",
            ["--goal", "sft", "--model", "m", "--data", "d", "--reward", "r", "--yes"],
            "--reward is for ppo",
        ),
        ("", ["--out", "x.txt"], "ends in .yaml"),
        ("", ["--goal", "sft", "--out", "here.yaml"], "here.yaml: exists"),
    ],
)
def test_an_answer_that_cannot_be_is_said_and_nothing_is_written(
    typed: str,
    given: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.yaml").write_text("mine", "utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert call("init", *([] if typed or given[0] != "--out" else ["--goal", "sft"]), *given) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["here.yaml"] and Path(
        "here.yaml"
    ).read_text() == "mine"


def test_both_languages_say_the_same() -> None:
    english, chinese = COMMENTS["en"], COMMENTS["zh"]
    assert english.keys() == chinese.keys()
    assert all(english[key] != chinese[key] for key in english)
    assert all(text.count("{file}") == chinese[key].count("{file}") for key, text in english.items())


@pytest.mark.slow
def test_two_names_make_a_pipeline_that_runs_whole_and_step_by_step(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base, pairs = str(world / "base"), str(world / "pref_train.jsonl")
    given = ["rlhf", "--actor", base, "--reward-model", base, "--data", pairs]
    assert call(*given, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert Path("rlhf.yaml").read_text("utf-8") == shown and not Path("runs").exists()
    assert call("inspect", "rlhf.yaml") == 0
    small = [*SMALL, "ppo.max_new_tokens=4"]
    assert call("run", "rlhf.yaml", *small, "--only", "ppo") == 2
    assert "--only sft --only reward" in " ".join(capsys.readouterr().err.split())
    assert call("run", "rlhf.yaml", *small, "--until", "reward") == 0
    assert sorted(path.name for path in Path("runs/rlhf").glob("*/model")) == ["model", "model"]
    assert not Path("runs/rlhf/ppo").exists()
    before = Path("runs/rlhf/sft/summary.json").stat().st_mtime_ns
    assert call("run", "rlhf.yaml", *small, "--from", "ppo") == 0
    assert Path("runs/rlhf/ppo/model").is_dir()
    assert Path("runs/rlhf/sft/summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("deployment", ["single_gpu", "single_node", "multi_node"])
def test_each_deployment_is_a_file_of_its_own(
    deployment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["rlhf", "--actor", "a", "--reward-model", "b", "--data", "d.jsonl", "--deployment", deployment]
    assert call(*given, "--dry-run") == 0
    raw = config.load_yaml("rlhf.yaml")
    assert (
        raw["strategy"] == {"single_gpu": "single", "single_node": "ddp", "multi_node": "zero3"}[deployment]
    )
    assert raw["stages"][2]["reward_retokenize"] is True
    assert ("torchrun" in capsys.readouterr().err) == (deployment == "multi_node")
    Path("rlhf.yaml").write_text("stage: sft\n", "utf-8")
    assert call(*given, "--dry-run") == 2
    assert "espalier run rlhf.yaml" in " ".join(capsys.readouterr().err.split())
    assert call("rlhf", "--actor", "a", "--reward-model", "b", "--data", "d", "--deployment", "cloud") == 2
