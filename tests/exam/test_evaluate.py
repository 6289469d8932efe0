"""`espalier evaluate`: the promised files, runs that were stopped, and several models."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from espalier.checking.mathematics import NOT_COMPARABLE
from espalier.errors import Stopped, UserError
from espalier.exam import run
from espalier.exam.evaluate import Asking, evaluate
from espalier.exam.judges.judge import JUDGES
from espalier.exam.several import evaluate_several
from espalier.exam.tasks import Settings
from espalier.models import load
from espalier.models.saved import save_model
from tests import processes
from tests.exam.independent import model_of
from tests.exam.tasks.test_own_task import ROWS, task_file

QUIET = Asking(quiet=True)
LINE = {"id", "prefix", "prompt", "candidates", "scores", "tokens", "normalise", "gold", "prediction"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load.train_tokenizer([row["q"] + " " + row["answer"] for row in ROWS] * 5, 280)
    save_model(folder, model_of("llama", tokenizer), tokenizer)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def test_results_have_the_promised_keys(small: Path, tmp_path: Path) -> None:
    path = task_file(tmp_path, train="train.jsonl")
    out = tmp_path / "out"
    results = evaluate(
        str(small), [str(path)], out=out, shots=[2], settings=Settings(Path(), limit=5), asking=QUIET
    )
    assert results["template"] is None and results["layout"] == "tree" and results["dtype"] == "float32"
    assert results == json.loads((out / "results.json").read_text("utf-8"))
    row = results["tasks"]["sums"]
    assert row["n"] == 5 and row["shots"] == 2 and row["tokens_computed"] < row["tokens_unshared"]
    assert set(row["metrics"]) == {"accuracy", "accuracy_stderr"} and row["chance"] == 0.5
    found = lines(out / "sums.jsonl")
    assert len(found) == 5 and all(set(line) == LINE for line in found)
    assert results["prefixes"][found[0]["prefix"]].count("=") == 2
    assert not list(out.glob("*.partial")) and not list(out.glob("*.state.json"))


def test_generated_answers_are_cut_and_compared(small: Path, tmp_path: Path) -> None:
    generation = {"references": "answer", "max_new_tokens": 4, "metric": "contains"}
    path = task_file(tmp_path, candidates=None, gold=None, generation=generation)
    results = evaluate(str(small), [str(path)], out=tmp_path / "out", asking=QUIET)
    assert set(results["tasks"]["sums"]["metrics"]) == {"contains", "contains_stderr"}
    assert set(lines(tmp_path / "out" / "sums.jsonl")[0]) == {"id", "prefix", "prompt", "text", "references", "metrics"}  # fmt: skip


def test_answers_that_were_not_compared_are_wrong_and_counted(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def judge(text: str, references: tuple[str, ...]) -> dict[str, float]:
        return {"accuracy": 0.0, NOT_COMPARABLE: 1.0} if next(calls) % 3 == 1 else {"accuracy": 1.0}

    calls = itertools.count()
    monkeypatch.setitem(JUDGES, "contains", judge)
    generation = {"references": "answer", "max_new_tokens": 4, "metric": "contains"}
    path = task_file(tmp_path, candidates=None, gold=None, generation=generation)
    row = evaluate(str(small), [str(path)], out=tmp_path / "out")["tasks"]["sums"]
    lost = [line for line in lines(tmp_path / "out" / "sums.jsonl") if NOT_COMPARABLE in line["metrics"]]
    assert row[NOT_COMPARABLE] == len(lost) > 0 and "shortened" not in row
    assert set(row["metrics"]) == {"accuracy", "accuracy_stderr"}
    assert row["metrics"]["accuracy"] == pytest.approx(1 - len(lost) / row["n"])
    assert f"sums: {len(lost)} answers could not be compared" in " ".join(capsys.readouterr().out.split())


def test_what_is_done_is_not_done_again_until_something_changes(small: Path, tmp_path: Path) -> None:
    path = task_file(tmp_path)
    first = evaluate(str(small), [str(path)], out=tmp_path / "out", asking=QUIET)
    assert evaluate(str(small), [str(path)], out=tmp_path / "out", asking=QUIET) == first
    with (tmp_path / "sums.jsonl").open("a") as stream:
        stream.write(json.dumps({"q": "5 + 5 =", "options": ["10", "11"], "answer": "10"}) + "\n")
    again = evaluate(str(small), [str(path)], out=tmp_path / "out", asking=QUIET)
    assert again["tasks"]["sums"]["n"] == first["tasks"]["sums"]["n"] + 1


@pytest.mark.parametrize("written", [False, True], ids=["chosen", "written"])
def test_a_stopped_exam_ends_in_the_same_files(
    written: bool, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"train": "train.jsonl", "shots": 2}
    if written:
        changes |= {
            "candidates": None,
            "gold": None,
            "generation": {"references": "answer", "max_new_tokens": 3},
        }
    path = task_file(tmp_path, **changes)
    monkeypatch.setattr(run, "BLOCK", 2)
    whole = evaluate(str(small), [str(path)], out=tmp_path / "whole", asking=QUIET)

    asked = iter([False, True, False, False, True] + [False] * 9)
    monkeypatch.setattr("espalier.exam.evaluate.StopSignal", lambda: _Stop(asked))
    for _ in range(2):
        with pytest.raises(Stopped, match="goes on from there"):
            evaluate(str(small), [str(path)], out=tmp_path / "parts", asking=QUIET)
        assert (tmp_path / "parts" / "sums.jsonl.partial").is_file()
    parts = evaluate(str(small), [str(path)], out=tmp_path / "parts", asking=QUIET)
    for key in ("metrics", "n", "tokens_unshared"):
        assert parts["tasks"]["sums"].get(key) == whole["tasks"]["sums"].get(key)
    assert (tmp_path / "parts" / "sums.jsonl").read_bytes() == (
        tmp_path / "whole" / "sums.jsonl"
    ).read_bytes()


class _Stop:
    """A signal that comes when it is told to."""

    def __init__(self, asked: Any) -> None:
        self._asked = asked

    def __enter__(self) -> _Stop:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def asked(self) -> bool:
        return next(self._asked)


def test_an_unfinished_file_of_other_settings_is_not_continued(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "BLOCK", 2)
    asked = iter([True] + [False] * 9)
    monkeypatch.setattr("espalier.exam.evaluate.StopSignal", lambda: _Stop(asked))
    with pytest.raises(Stopped):
        evaluate(str(small), [str(task_file(tmp_path))], out=tmp_path / "out", asking=QUIET)
    path = task_file(tmp_path, normalise="mean")
    results = evaluate(str(small), [str(path)], out=tmp_path / "out", asking=QUIET)
    assert results["tasks"]["sums"]["n"] == 9
    assert {line["normalise"] for line in lines(tmp_path / "out" / "sums.jsonl")} == {"mean"}


@pytest.mark.slow
def test_control_c_in_a_real_process(small: Path, tmp_path: Path) -> None:
    """SIGINT: exit 3 with what was done on the disk; the same command then finishes."""
    rows = [{"q": f"{a} + {b} =", "options": [str(a + b), str(a - b)], "answer": 0}
            for a in range(60) for b in range(30)]  # fmt: skip
    path = task_file(tmp_path, rows)
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "espalier.cli",
        "evaluate",
        str(small),
        "--tasks",
        str(path),
        "--out",
        str(out),
    ]
    process = processes.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    for _ in range(1200):
        if (out / "sums.state.json").is_file() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 3, said
    done = len(lines(out / "sums.jsonl.partial"))
    assert 0 < done < 1800 and "goes on from there" in " ".join(said.split())
    processes.run(command, check=True, capture_output=True)
    found = lines(out / "sums.jsonl")
    assert len(found) == 1800 and [line["id"] for line in found] == [str(i) for i in range(1, 1801)]


def test_several_models_are_compared_question_by_question(small: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tokenizer = load.load_tokenizer(str(small))
    save_model(other, model_of("qwen2", tokenizer), tokenizer)
    found = evaluate_several(
        [str(small), str(other)],
        [str(task_file(tmp_path))],
        out=tmp_path / "out",
        settings=Settings(Path()),
        shots=[None],
        asking=QUIET,
    )
    (pair,) = json.loads((tmp_path / "out" / "compare.json").read_text("utf-8"))["pairs"]
    assert pair == found["pairs"][0] and pair["n"] == 9
    rows = [results["tasks"]["sums"]["metrics"]["accuracy"] for results in found["models"].values()]
    assert pair["difference"] == pytest.approx(rows[1] - rows[0])
    with pytest.raises(UserError, match="named twice"):
        evaluate_several(
            [str(small)] * 2, ["x"], out=tmp_path, settings=Settings(Path()), shots=[None], asking=QUIET
        )


@pytest.mark.slow
def test_memory_does_not_grow_with_the_questions(small: Path, tmp_path: Path) -> None:
    """Peak memory of Python's own objects for 400 and for 1,600 questions: no list of them is held."""
    code = (
        "import sys, tracemalloc; from pathlib import Path\n"
        "from espalier.exam.tasks.own_task import load_task; from espalier.exam.run import Examiner\n"
        "import torch\n"
        "from espalier.exam.answers.choose import Chooser; from espalier.exam.answers.scorer import Cost, Scored\n"
        "Chooser.score = lambda self, asked, shorten=None: ([Scored([0.0, 1.0], [1, 1]) for _ in asked], Cost(1, 1))\n"
        "from espalier.models import load; from espalier.models.forward import TreeModel\n"
        "from espalier.models.probe import probe\n"
        "lm = load.load_lm(sys.argv[1]); model = TreeModel(lm, probe(lm))\n"
        "tokenizer = load.load_tokenizer(sys.argv[1]); task = load_task(sys.argv[2])\n"
        "examiner = Examiner(model, tokenizer); tracemalloc.start()\n"
        "examiner.examine(task, Path(sys.argv[3]), settings={})\n"
        "print(tracemalloc.get_traced_memory()[1])\n"
    )
    peaks = []
    for many in (400, 1_600):
        folder = tmp_path / str(many)
        folder.mkdir()
        rows = [{"q": f"{i} " * 50, "options": ["1", "2"], "answer": 0} for i in range(many)]
        path = task_file(folder, rows)
        command = [sys.executable, "-c", code, str(small), str(path), str(folder / "out")]
        peaks.append(int(processes.run(command, capture_output=True, check=True).stdout))
    assert peaks[1] < 1.5 * peaks[0] + 2**20, peaks


@pytest.mark.slow
def test_the_command_asks_in_a_chat_template(small: Path, tmp_path: Path) -> None:
    """Through the command line: other prompts, JSON on stdout, a page beside the results."""
    path = task_file(tmp_path, train="train.jsonl", shots=1)
    arguments = ["evaluate", str(small), "--tasks", str(path), "--limit", "3", "--json"]
    said = {}
    for template in ("none", "auto"):
        out = tmp_path / template
        command = [
            sys.executable,
            "-m",
            "espalier.cli",
            *arguments,
            "--template",
            template,
            "--out",
            str(out),
        ]
        found = processes.run(command, capture_output=True, check=True).stdout
        said[template] = json.loads(found)
        assert said[template] == json.loads((out / "results.json").read_text("utf-8"))
        assert (out / "report.html").is_file()
    assert said["none"]["template"] is None and said["auto"]["template"] is not None
    plain, chat = (lines(tmp_path / name / "sums.jsonl")[0] for name in said)
    assert plain["prompt"] == "1 + 1 =" and chat["prompt"] != plain["prompt"] and "1 + 1 =" in chat["prompt"]
    assert plain["candidates"][0]["text"] == " 2" and chat["candidates"][0]["text"] == "2"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--tasks", "tnew"], "did you mean tnews"),
        (["--tasks", "tnews", "--shots", "three"], "--shots three: wanted numbers"),
        (["--tasks", "tnews", "--prompts", "nice"], "--prompts nice: wanted plain or pangu"),
        (["--tasks", "tnews", "--data", "nowhere"], "there is no such folder"),
    ],
)
def test_a_wrong_argument_says_what_to_do(
    arguments: list[str], wanted: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from espalier.cli import app, guarded

    code = guarded(
        lambda: app(["evaluate", str(small), "--out", str(tmp_path), *arguments], standalone_mode=False)
    )
    assert code == 2 and wanted in " ".join(capsys.readouterr().err.split())
