"""Two processes are one, under every strategy: all runs of this file in one start of two ranks, beside single ones here.

The engine's class and what each rank holds are asserted with the numbers: DDP in place of a sharding engine would give
the same losses.
"""

from __future__ import annotations

import functools
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
FULL: dict[str, Any] = {}
LORA = {"finetuning_type": "lora", "lora_rank": 4}
WAYS = {"full": FULL, "lora": LORA}
CLASS = {"ddp": "DistributedDataParallel", "fsdp": "FSDPModule"} | dict.fromkeys(
    ("zero1", "zero2", "zero3"), "DeepSpeedEngine"
)
CUT = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp": 3}
"""How many of the optimiser's state, the gradients and the weights, in this order, each rank holds a share of."""
MATRIX = {
    "sft": (
        "ddp-full zero1-full zero2-full zero3-full fsdp-full ddp-lora zero1-lora zero2-lora zero3-lora fsdp-lora"
    ),
    "dpo": "ddp-full zero1-full zero2-lora zero3-full zero3-lora fsdp-full fsdp-lora",
    "reward": "ddp-lora zero1-full zero2-full zero3-lora fsdp-full",
    "ppo": "ddp-full zero1-lora zero2-full zero3-full zero3-lora fsdp-full fsdp-lora",
    "grpo": "ddp-lora zero1-full zero2-lora zero3-full fsdp-lora",
}
MATRIX = {stage: names.split() for stage, names in MATRIX.items()}  # type: ignore[misc]
PPO = {"ema_decay": 0.9, "critic_max_grad_norm": 0.02}
"""The critic is clipped to a norm of its own, below the one that it has."""
OFFLOADED = {"zero2": "optimizer", "zero3": "all", "fsdp": "all"}
ADAPTED = [("adalora", "dpo", "ddp"), ("prompt", "dpo", "zero2"), ("ia3", "sft", "fsdp")]
STEPS = {"max_steps": 3, "samples": 0, "weight_decay": 0.1, "max_grad_norm": 0.5}
"""A decay and a clipping that are felt."""
SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def stages() -> dict[str, dict[str, Any]]:
    """Name of a run -> what it changes; the step has 8 records in all."""
    found: dict[str, dict[str, Any]] = {}
    for stage, names in MATRIX.items():
        for name in names:
            strategy, way = name.split("-")
            changes = WAYS[way] | (PPO if stage == "ppo" else {})
            found[f"{stage}-{name}"] = {"stage": stage, "strategy": strategy, **changes}
    for strategy, offload in OFFLOADED.items():
        found[f"sft-{strategy}-off"] = {"stage": "sft", "strategy": strategy, "offload": offload}
    for number in (1, 2, 3):  # the files that come along
        file = {"strategy": f"zero{number}", "deepspeed": f"stage-{number}-offload"}
        found[f"sft-zero{number}-file"] = {"stage": "sft", **file}
    for kind, stage, strategy in ADAPTED:
        found[f"{kind}-{stage}-{strategy}"] = {"stage": stage, "strategy": strategy, **KINDS[kind]}
    found["lora-dpo-fsdp"] = {
        **{"stage": "dpo", "strategy": "fsdp", "finetuning_type": "lora"},
        "precompute_ref_logprobs": True,
    }
    for strategy in CLASS:
        found[f"sft-{strategy}-bf16"] = {"stage": "sft", "strategy": strategy, "precision": "bf16"}
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
        made = options_of(world, folder / "run", **{**STEPS, **changes, **SPLIT})
        del made["output_dir"]
        chain.append({**made, "name": name, "num_processes": 2})
    file = folder / "chain.yaml"
    file.write_text(json.dumps({"output_dir": str(folder / "run"), "stages": chain}), "utf-8")
    done = processes.run([sys.executable, "-m", "espalier.cli", "run", str(file)], capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def one(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name of a run -> the options of the same in one process, which has run; each kind once."""

    @functools.cache
    def made(changes: str) -> dict[str, Any]:
        options = options_of(world, tmp_path_factory.mktemp("one"), **{**STEPS, **json.loads(changes)})
        run(options)
        return options

    def get(name: str) -> dict[str, Any]:
        changes = {k: v for k, v in stages()[name].items() if k not in ("offload", "deepspeed")} | {
            "strategy": "single"
        }
        return made(json.dumps(changes))

    return get


def beside(two: Path, name: str) -> dict[str, Any]:
    """Options by which the results of the two processes are found; they were two, and what was asked for, in truth."""
    summary, asked = json.loads((two / name / "summary.json").read_text("utf-8")), stages()[name]["strategy"]
    engine = summary["engine"]
    assert summary["processes"] == 2 and summary["strategy"] == engine["strategy"] == asked
    assert engine["class"] == CLASS[asked]
    for number, part in enumerate(("optimizer", "gradients", "parameters")):
        whole, ranks = engine[part]["whole"], engine[part]["ranks"]
        assert len(ranks) == 2 and whole > 0
        if (asked, part) == ("zero1", "gradients"):
            assert (
                max(ranks) <= whole
            )  # whole until the last micro-batch, and let go of when they are exchanged
        elif number >= CUT[asked]:
            assert ranks == [whole, whole], part
        else:  # small tensors stay whole under ZeRO-3, and what cannot be halved is padded
            assert sum(ranks) >= whole and max(ranks) < 0.65 * whole, part
    return {"output_dir": str(two), "stage": name}


def series(made: dict[str, Any], key: str) -> list[float]:
    return [row[key] for row in rows(made) if "loss" in row]


@pytest.mark.parametrize(
    "name", [name for name in stages() if name.split("-")[0] in MATRIX and "bf16" not in name]
)
def test_they_train_the_same_model(name: str, two: Path, one: Any) -> None:
    alone, both = one(name), beside(two, name)
    assert series(both, "loss") == pytest.approx(series(alone, "loss"), rel=1e-5, abs=1e-6)
    assert series(both, "grad_norm") == pytest.approx(series(alone, "grad_norm"), rel=1e-5)
    assert far(weights(alone), weights(both)) < 1e-4
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
        for beside_it in ("critic", "ema"):
            assert far(weights(alone, beside_it), weights(both, beside_it)) < 1e-4


@pytest.mark.parametrize("name", [*("-".join(parts) for parts in ADAPTED), "lora-dpo-fsdp"])
def test_they_train_the_same_adapter(name: str, two: Path, one: Any) -> None:
    alone, both = one(name), beside(two, name)
    assert "dpo" not in name or series(alone, "loss")[0] == pytest.approx(math.log(2), abs=1e-4)
    assert series(both, "loss") == pytest.approx(series(alone, "loss"), abs=1e-4)


@pytest.mark.parametrize("strategy", list(CLASS))
def test_they_begin_alike_in_bf16(strategy: str, two: Path, one: Any) -> None:
    name = f"sft-{strategy}-bf16"
    alone, both = one(name), beside(two, name)
    for ours, theirs in zip(series(alone, "loss"), series(both, "loss"), strict=True):
        assert abs(ours - theirs) < LOGPROB
    in_float32 = series({"output_dir": str(two), "stage": "sft-ddp-full"}, "loss")[0]
    assert in_float32 not in (series(alone, "loss")[0], series(both, "loss")[0]), "this is no float32"
