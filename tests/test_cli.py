"""The commands as a user meets them: exit codes, and one clear message for each mistake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from espalier import cli
from espalier.runs import pipeline, train

BASE: dict[str, Any] = {
    "stage": "sft",
    "model_config": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    },
    "vocab_size": 300,
    "cutoff_len": 64,
    "max_steps": 1,
}
GOOD = [{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(12)]


def call(*words: str) -> int:
    def run() -> Any:
        return cli.app(list(words), standalone_mode=False)

    return cli.guarded(run)


def written(tmp_path: Path, lines: list[str], **changes: Any) -> str:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines) + "\n", "utf-8")
    file = tmp_path / "run.yaml"
    options = {**BASE, "dataset": str(data), "output_dir": str(tmp_path / "run"), **changes}
    file.write_text(json.dumps({k: v for k, v in options.items() if v is not None}), "utf-8")
    return str(file)


def lines(rows: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(row) for row in rows]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_good_file_runs_and_is_then_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, lines(GOOD))
    assert call("sft", file) == 0
    summary = json.loads((tmp_path / "run" / "sft" / "summary.json").read_text("utf-8"))
    assert summary["status"] == "done" and summary["steps"] == 1
    assert (tmp_path / "run" / "report.html").is_file()
    capsys.readouterr()
    assert call("run", file) == 0
    assert "skipped" in said(capsys)


def test_a_bom_is_no_mistake(tmp_path: Path) -> None:
    file = written(tmp_path, lines(GOOD))
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"\xef\xbb\xbf" + data.read_bytes())
    assert call("sft", file) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('{"instruction": "a", "output"', "data.jsonl:7"),
        ('{"question": "a"}', "data.jsonl:7"),
        ('{"instruction": "a", "output": ""}', "data.jsonl:7"),
        ('{"instruction": "a", "output": 5}', "data.jsonl:7"),
    ],
    ids=["broken JSON", "missing column", "empty answer", "number for text"],
)
def test_a_bad_seventh_line_is_named(
    line: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = lines(GOOD)
    bad[6] = line
    assert call("sft", written(tmp_path, bad)) == 2
    message = said(capsys)
    assert wanted in message.replace(" ", "") and "skip_bad" in message
    assert "Traceback" not in message
    assert call("sft", written(tmp_path, bad), "skip_bad=true") == 0
    kept = (tmp_path / "run" / "sft" / "rejected.jsonl").read_text("utf-8").splitlines()
    assert len(kept) == 1


def test_an_unknown_key_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sft", written(tmp_path, lines(GOOD), learning_rat=1e-3)) == 2
    assert "learning_rate" in said(capsys)


def test_a_key_of_another_stage_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sft", written(tmp_path, lines(GOOD), clip_range=0.1)) == 2
    assert "ppo" in said(capsys)


def test_a_model_folder_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    (empty / "tokenizer.json").write_text("{}", "utf-8")
    file = written(tmp_path, lines(GOOD), model_config=None, vocab_size=None, model_name_or_path=str(empty))
    assert call("sft", file) == 2
    assert str(empty) in said(capsys).replace(" ", "") or "tokenizer" in said(capsys)


def test_a_missing_file_names_a_near_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, lines(GOOD))
    assert call("sft", file, f"dataset={tmp_path / 'dota.jsonl'}") == 2
    assert "data.jsonl" in said(capsys)


def test_wrong_words_on_the_command_line() -> None:
    assert call("sfft", "x.yaml") == 2
    assert call("report", "no-such-run") == 2


def test_inspect_shows_a_config_as_it_will_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", written(tmp_path, lines(GOOD))) == 0
    shown = capsys.readouterr().out
    assert "lr_scheduler_type" in shown and "max_steps: 1" in shown


def test_inspect_shows_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sft", written(tmp_path, lines(GOOD))) == 0
    capsys.readouterr()
    assert call("inspect", str(tmp_path / "run" / "sft" / "model"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "tree"


def test_what_is_not_built_yet_is_refused_and_not_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sft", written(tmp_path, lines(GOOD), compile=True)) == 2
    assert "not available yet" in said(capsys)


def test_a_tracker_that_is_not_installed_is_said_before_the_first_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert call("sft", written(tmp_path, lines(GOOD), report_to=["tensorboard"])) == 2
    assert "espalier-llm[tensorboard]" in said(capsys).replace(" ", "")
    assert not (tmp_path / "run").exists()


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; import espalier.cli; sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PROGRAM = """
import os, signal, sys, time
from espalier.report import page as report
def write_report(folder):
    if folder.name == "bug":
        raise KeyError("surprise")
    print("at work", flush=True)
    time.sleep(1000)
report.write_report = write_report
from espalier.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "number", "code"),
    [("nowhere", None, 2), ("bug", None, 1), ("slow", signal.SIGTERM, 143), ("slow", signal.SIGHUP, 129)],
)
def test_the_command_itself_ends_with_the_code_of_what_happened(
    folder: str, number: signal.Signals | None, code: int, tmp_path: Path
) -> None:
    for name in ("bug", "slow"):
        (tmp_path / name).mkdir()
    words = [sys.executable, "-c", PROGRAM, "report", str(tmp_path / folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if number is not None:
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert ("Traceback" in err) == (code == 1)
    assert ("error:" in err) == (code == 2)


def test_a_signal_before_the_first_step_is_a_stop_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_prepared", lambda start: signal.raise_signal(signal.SIGTERM))
    assert call("sft", written(tmp_path, lines(GOOD))) == 3
    assert "stopped by SIGTERM" in said(capsys)


def test_of_ranks_that_another_launcher_started_the_first_speaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, wanted in (("0", "error:"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert call("report", str(tmp_path / "nowhere")) == 2
        assert said(capsys).startswith(wanted) and (wanted or not said(capsys))


def test_the_processes_that_are_started_are_as_talkative_as_their_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(pipeline, "relaunch", lambda arguments, processes: started.append(arguments) or 0)
    monkeypatch.setitem(cli._state, "verbose", False)
    file = written(tmp_path, lines(GOOD), strategy="ddp", num_processes=2)
    assert call("-v", "sft", file) == 0 and call("sft", file, "seed=7") == 0
    assert started == [["-v", "run", file, "stage=sft"], ["run", file, "stage=sft", "seed=7"]]


def test_options_with_dashes_are_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = lines(GOOD)
    bad[6] = '{"question": "a"}'
    file = written(tmp_path, bad)
    assert call("sft", file, "--learning-rate", "3e-3", "--skip-bad") == 0
    kept = (tmp_path / "run" / "sft" / "config.yaml").read_text("utf-8")
    assert "learning_rate: 0.003" in kept and "skip_bad: true" in kept
    capsys.readouterr()
    assert call("sft", file, "--learning-rat", "3e-3") == 2
    assert "Did you mean `learning_rate`?" in said(capsys)
    assert call("run", file, "--only", "sft") == 2
    assert "one stage, not a pipeline" in said(capsys)


def test_what_runs_is_said_before_and_what_can_be_done_next_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sft", written(tmp_path, lines(GOOD))) == 0
    shown = capsys.readouterr().err.splitlines()
    words = "\n".join(shown)
    first = next(number for number, line in enumerate(shown) if line.startswith("sft 1/1 loss"))
    assert " parameters, all trained" in "\n".join(shown[:first])
    assert "sft: 1 step of 8 records" in shown[:first] and any(
        ", fp32" in s or ", bf16" in s for s in shown[:first]
    )
    assert not [line for line in shown if line.strip() in ("sft 0/1", "sft 1/1")], "nothing is held out"
    model = tmp_path / "run" / "sft" / "model"
    assert f"talk to it: espalier chat {model}" in words and f"examine it: espalier evaluate {model}" in words


def test_what_inspect_shows_of_a_config_runs_and_is_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(lines(GOOD)) + "\n", "utf-8")
    small = {**BASE, "dataset": str(data), "val_size": 2}
    again = {
        "stage": "sft",
        "model_name_or_path": "run:one",
        "dataset": str(data),
        "max_steps": 1,
        "cutoff_len": 64,
    }
    adapter = {"finetuning_type": "lora", "lora_target": ["q_proj", "v_proj"], "name": "two"}
    shared = {"output_dir": str(tmp_path / "run"), "samples": 0}
    file, shown = tmp_path / "both.yaml", tmp_path / "shown.yaml"
    file.write_text(
        json.dumps({**shared, "stages": [{**small, "name": "one"}, {**again, **adapter}]}), "utf-8"
    )
    assert call("run", str(file)) == 0
    capsys.readouterr()
    assert call("inspect", str(file)) == 0
    shown.write_text(capsys.readouterr().out, "utf-8")
    assert call("run", str(shown)) == 0
    told = said(capsys)
    assert "one: done already" in told and "two: done already" in told
