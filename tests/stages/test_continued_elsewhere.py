"""A run that was stopped goes on under another strategy and with another number of processes, in the same steps.

Three starts hold for all runs of this file: two ranks, one process, two ranks; each run has another strategy in each of
them. Beside them stand the same runs in one process without a stop.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests import processes
from tests.conftest import for_all_workers
from tests.stages.conftest import far, options_of, rows, run, weights

pytestmark = pytest.mark.slow
BY_TOKENS = {
    "tokens_per_step": 500,
    "per_device_train_batch_size": None,
    "num_train_epochs": 2,
    "max_steps": None,
}
LORA = {"finetuning_type": "lora", "lora_rank": 4}
RUNS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "whole": ({"stage": "sft", **BY_TOKENS}, ["zero3", "single", "fsdp"]),
    "offloaded": ({"stage": "sft", **BY_TOKENS}, ["fsdp", "zero2", "zero1"]),
    "adapter": ({"stage": "sft", **BY_TOKENS, **LORA}, ["zero2", "fsdp", "zero3"]),
    "records": (
        {"stage": "dpo", "max_steps": 9, "per_device_train_batch_size": 8},
        ["ddp", "zero3", "zero2"],
    ),
    "rollouts": (
        {"stage": "ppo", "max_steps": 8, "per_device_train_batch_size": 4},
        ["zero1", "single", "zero3"],
    ),
}
"""Name -> (what it changes, the strategies of the three starts); a batch is that of one process."""
OFFLOAD = {"fsdp": "all", "zero2": "optimizer", "zero1": "optimizer"}
STARTS = [(2, 3), (1, 6), (2, None)]
"""(processes, the step at which it is stopped) of each start."""
RANK = """
import json, sys
from espalier import config
from espalier.errors import Stopped
from espalier.runs import train

class StopAt(train.StopSignal):
    at = None
    def __init__(self):
        super().__init__()
        self._steps = 0
    @property
    def asked(self):
        return StopAt.at is not None and StopAt.at <= running.progress.step + 1
    @asked.setter
    def asked(self, value):
        pass

train.StopSignal = StopAt
before = train._prepared
def prepared(start):
    global running
    running = before(start)
    return running
train._prepared = prepared
for options, stop in json.load(open(sys.argv[1])):
    StopAt.at = stop
    try:
        train.run_stage(config.RawConfig(options))
        assert stop is None
    except Stopped as stopped:
        assert stop is not None and stopped.step >= stop, stopped
"""
PARENT = f"""
import sys
from espalier.engine import launch
code = {RANK!r}
for file, processes in zip(sys.argv[1::2], sys.argv[2::2]):
    command = [sys.executable, "-c", code, file]
    alone = processes == "1"
    if launch.subprocess.Popen(command).wait() if alone else launch.as_ranks(command, int(processes)):
        sys.exit(1)
"""


@pytest.fixture(scope="module")
def moved(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, stopped twice and moved."""
    folder = for_all_workers(tmp_path_factory) / "moved"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir()
            _start(world, folder)
            (folder / "done").touch()
    return folder


def _start(world: Path, folder: Path) -> None:
    words = []
    for number, (count, stop) in enumerate(STARTS):
        listed = []
        for name, (changes, strategies) in RUNS.items():
            made = options_of(world, folder, **{"samples": 0, "eval_steps": 0, **changes})
            made |= {"name": name, "strategy": strategies[number]}
            if made["per_device_train_batch_size"] is not None:
                made["per_device_train_batch_size"] //= count
            if name == "offloaded":
                made["offload"] = OFFLOAD[strategies[number]]
            listed.append((made, stop))
        file = folder / f"{number}.json"
        file.write_text(json.dumps(listed), "utf-8")
        words += [str(file), str(count)]
    done = processes.run([sys.executable, "-c", PARENT, *words], capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]


@functools.cache
def _alone(world: Path, folder: Path, name: str) -> dict[str, Any]:
    changes, _ = RUNS[name]
    made = options_of(world, folder, **{"samples": 0, "eval_steps": 0, **changes}) | {"name": name}
    run(made)
    return made


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_that_moved_is_one_that_stayed(name: str, moved: Path, world: Path, tmp_path: Path) -> None:
    alone = _alone(world, tmp_path, name)
    there = {"output_dir": str(moved), "stage": name}
    summary = json.loads((moved / name / "summary.json").read_text("utf-8"))
    last = RUNS[name][1][-1]
    assert summary["status"] == "done" and summary["engine"]["strategy"] == summary["strategy"] == last
    assert sum("continuing from step" in note for note in summary["notes"]) == 1
    one, three = ([row for row in rows(made) if "loss" in row] for made in (alone, there))
    assert [row["step"] for row in three] == [row["step"] for row in one] == list(range(1, len(one) + 1))
    assert len(one) > 7, "each start has made steps"
    for key in ("loss", "grad_norm", "learning_rate", "epoch"):
        assert [row[key] for row in three] == pytest.approx([row[key] for row in one], rel=1e-5, abs=1e-6), (
            key
        )
    assert far(weights(alone), weights(there)) < 1e-4
