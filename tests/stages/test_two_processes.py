"""Two processes are one: every run of this file in one start of two ranks, beside the same runs in this process."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests import processes
from tests.conftest import for_all_workers
from tests.stages.conftest import far, options_of, rows, run, weights
from tests.stages.test_adapters import KINDS
from tests.stages.test_precision import LOGPROB

pytestmark = pytest.mark.slow
WHOLE = [("sft", "ddp"), ("ppo", "ddp"), ("sft", "zero2"), ("ppo", "zero2"), ("sft", "fsdp"), ("dpo", "ddp")]
ADAPTED = [("adalora", "dpo", "ddp"), ("prompt", "dpo", "zero2"), ("ia3", "sft", "fsdp")]
STEPS = {"max_steps": 3, "samples": 0}


def stages() -> dict[str, dict[str, Any]]:
    """Name of a run -> what it changes; the step has 8 records in all."""
    found = {f"{stage}-{strategy}": {"stage": stage, "strategy": strategy} for stage, strategy in WHOLE}
    for kind, stage, strategy in ADAPTED:
        found[f"{kind}-{stage}-{strategy}"] = {"stage": stage, "strategy": strategy, **KINDS[kind]}
    found["lora-dpo-fsdp"] = {
        **{"stage": "dpo", "strategy": "fsdp", "finetuning_type": "lora"},
        "precompute_ref_logprobs": True,
    }
    found["sft-bf16"] = {"stage": "sft", "strategy": "ddp", "precision": "bf16"}
    return found


@pytest.fixture(scope="module")
def two(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a pipeline of all of them, by the command line, in two processes; once for all workers."""
    folder = for_all_workers(tmp_path_factory) / "two"
    with FileLock(f"{folder}.lock"):
        if not (folder / "run" / "report.html").is_file():
            folder.mkdir()
            _start(world, folder)
    return folder / "run"


def _start(world: Path, folder: Path) -> None:
    chain = []
    for name, changes in stages().items():
        made = options_of(world, folder / "run", **{**STEPS, **changes}, per_device_train_batch_size=4)
        del made["output_dir"]
        chain.append({**made, "name": name, "num_processes": 2})
    file = folder / "chain.yaml"
    file.write_text(json.dumps({"output_dir": str(folder / "run"), "stages": chain}), "utf-8")
    done = processes.run([sys.executable, "-m", "espalier.cli", "run", str(file)], capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]


def one(world: Path, folder: Path, name: str) -> dict[str, Any]:
    changes = stages()[name] | {"strategy": "single"}
    made = options_of(world, folder, **{**STEPS, **changes}, name=name)
    run(made)
    return made


def beside(two: Path, name: str) -> dict[str, Any]:
    """Options by which the results of the two processes are found; they were two in truth."""
    summary = json.loads((two / name / "summary.json").read_text("utf-8"))
    assert summary["processes"] == 2 and summary["strategy"] == stages()[name]["strategy"]
    return {"output_dir": str(two), "stage": name}


def losses(made: dict[str, Any]) -> list[float]:
    return [row["loss"] for row in rows(made) if "loss" in row]


@pytest.mark.parametrize("name", [f"{stage}-{strategy}" for stage, strategy in WHOLE])
def test_they_train_the_same_model(name: str, two: Path, world: Path, tmp_path: Path) -> None:
    alone, both = one(world, tmp_path, name), beside(two, name)
    assert far(weights(alone), weights(both)) < 2e-4
    assert losses(alone) == pytest.approx(losses(both), rel=1e-3, abs=1e-4)
    first, same = rows(alone)[0], rows(both)[0]
    assert first["step"] == same["step"] == 0 and len(first) > 1, "what is evaluated is the same, too"
    assert same == pytest.approx(first, rel=1e-4, abs=1e-5)
    if name.startswith("ppo"):
        assert {
            "eval_kl",
            "eval_yardstick_greedy",
            "eval_explained_variance",
            "eval_best_of_4",
        } <= same.keys()


@pytest.mark.parametrize("name", [*("-".join(parts) for parts in ADAPTED), "lora-dpo-fsdp"])
def test_they_train_the_same_adapter(name: str, two: Path, world: Path, tmp_path: Path) -> None:
    alone, both = one(world, tmp_path, name), beside(two, name)
    assert "dpo" not in name or losses(alone)[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses(both) == pytest.approx(losses(alone), abs=1e-4)


def test_they_begin_alike_in_bf16(two: Path, world: Path, tmp_path: Path) -> None:
    alone, both = one(world, tmp_path, "sft-bf16"), beside(two, "sft-bf16")
    first = losses(alone)[0], losses(both)[0]
    assert abs(first[0] - first[1]) < LOGPROB
    assert first[0] != losses({"output_dir": str(two), "stage": "sft-ddp"})[0], "this is no float32"
