"""A disk that takes nothing more: one message and exit code 2 in every command, and what was there before stays.

A limit of 0 bytes on the size of files stands for the full disk: every write fails in the system itself.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier import cli, config
from espalier.runs import pipeline
from espalier.runs.finished import NOTE

Make = Callable[..., dict[str, Any]]


def in_child(arguments: list[str], limit: int) -> tuple[int, str]:
    """Exit code and output of a command in a forked process whose files may grow to `limit` bytes."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            for number in (1, 2):
                os.dup2(writing, number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            code = cli.guarded(lambda: cli.app(arguments, standalone_mode=False))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as stream:
        said = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's YAML; the run's folder is beside it."""
    folder = tmp_path_factory.mktemp("finished")
    options = {"stage": "sft", "output_dir": str(folder / "run"), "model_name_or_path": str(world / "base"),
               "dataset": [str(world / "sft_train.jsonl")], "eval_dataset": [str(world / "sft_dev.jsonl")],
               "cutoff_len": 128, "max_steps": 1, "save_steps": 0, "samples": 1, "precision": "fp32"}  # fmt: skip
    pipeline.run_options(config.RawConfig(options))
    (folder / "run" / NOTE).unlink()  # by which a finished run would have nothing to write
    (folder / "sft.yaml").write_text(json.dumps(options), "utf-8")
    return folder / "sft.yaml"


COMMANDS: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "report": lambda yaml, world, out: ["report", str(yaml.parent / "run")],
    "a finished run again": lambda yaml, world, out: ["run", str(yaml)],
    "a new run": lambda yaml, world, out: ["run", str(yaml), f"output_dir={out / 'run'}"],
    "evaluate": lambda yaml, world, out: ["evaluate", str(world / "base"), "--tasks", str(out / "task.yaml"),
                                          "--out", str(out / "exam")],
    "prepare": lambda yaml, world, out: ["prepare", "split", str(world / "sft_train.jsonl"), "--out", str(out / "o.jsonl")],
    "dedup": lambda yaml, world, out: ["prepare", "dedup", str(world / "sft_train.jsonl"), "--out", str(out / "o.jsonl")],
    "inspect": lambda yaml, world, out: ["inspect", str(world / "sft_train.jsonl"), "--html", str(out / "i.html")],
    "merge": lambda yaml, world, out: ["convert", str(world / "base"), str(out / "merged")],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("limit", [0, 3000])
def test_a_full_disk_is_one_message(
    command: str, limit: int, finished: Path, world: Path, tmp_path: Path
) -> None:
    (tmp_path / "questions.jsonl").write_text(
        '{"question": "1 + 1 =", "candidates": ["1", "2"], "gold": 1}\n' * 40
    )
    asked = {"name": "sums", "data": str(tmp_path / "questions.jsonl"), "question": "{{ question }}",
             "candidates": "candidates", "gold": "{{ gold }}"}  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(asked))
    before = sorted(path.name for path in tmp_path.iterdir())
    kept = {p: p.read_bytes() for p in (finished.parent / "run").rglob("*") if p.is_file()}
    code, said = in_child(COMMANDS[command](finished, world, tmp_path), limit)
    assert code == 2 and "Traceback" not in said, said[-2000:]
    assert said.count("could not be written") == 1 and "Make room" in said, said[-2000:]
    assert {p: p.read_bytes() for p in (finished.parent / "run").rglob("*") if p.is_file()} == kept
    left = [p for p in tmp_path.rglob("*") if p.name.startswith(".")]
    assert not left and set(before) <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.slow
def test_a_place_that_is_no_folder_is_one_message(finished: Path, world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    place = tmp_path / "file"
    for arguments in (
        ["run", str(finished), f"output_dir={place}/run"],
        ["prepare", "split", str(world / "sft_train.jsonl"), "--out", f"{place}/o.jsonl"],
        ["inspect", str(world / "sft_train.jsonl"), "--html", f"{place}/i.html"],
    ):
        code, said = in_child(arguments, resource.RLIM_INFINITY)
        assert code == 2 and "Traceback" not in said and "error:" in said, said[-2000:]


def test_two_preparations_of_one_out(world: Path, tmp_path: Path) -> None:
    from espalier.disk.lock import owned

    out = tmp_path / "o.jsonl"
    with owned(tmp_path / ".o.jsonl.lock", out, "x"):
        code, said = in_child(["prepare", "split", str(world / "sft_train.jsonl"), "--out", str(out)], 10**9)
    assert (
        code == 2
        and f"process {os.getpid()} on" in said
        and "choose another --out" in said.replace("\n", " ")
    )
    assert not out.exists()
    assert in_child(["prepare", "split", str(world / "sft_train.jsonl"), "--out", str(out)], 10**9)[0] == 0
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")] and out.is_file()


@pytest.mark.slow
def test_two_exams_in_one_folder(world: Path, tmp_path: Path) -> None:
    from espalier.disk.lock import owned

    (tmp_path / "q.jsonl").write_text('{"question": "1 + 1 =", "candidates": ["1", "2"], "gold": 1}\n')
    asked = {"name": "sums", "data": str(tmp_path / "q.jsonl"), "question": "{{ question }}",
             "candidates": "candidates", "gold": "{{ gold }}"}  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(asked))
    arguments = [
        "evaluate",
        str(world / "base"),
        "--tasks",
        str(tmp_path / "task.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]
    with owned(tmp_path / "out" / ".lock", tmp_path / "out", "x"):
        code, said = in_child(arguments, 10**9)
    assert (
        code == 2 and f"process {os.getpid()} on" in said and not (tmp_path / "out" / "results.json").exists()
    )
    assert in_child(arguments, 10**9)[0] == 0 and (tmp_path / "out" / "results.json").is_file()
