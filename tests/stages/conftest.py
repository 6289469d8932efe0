"""A tiny base model with a tokenizer, small data of every kind, and ways to run a stage in this or another process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from espalier import config
from espalier.demo.data import write_demo_data
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.probe import probe
from espalier.models.saved import save_model
from espalier.runs.train import run_stage
from tests import processes

SIZES = {"pretrain": 60, "pretrain_dev": 12, "sft_train": 48, "sft_dev": 12, "pref_train": 48, "pref_dev": 12,
         "prompts": 24, "prompts_dev": 6, "exam": 12}  # fmt: skip
TINY = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "tie_word_embeddings": True}  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data files, ``base`` (a model) and ``judge`` (a reward model)."""
    folder = tmp_path_factory.mktemp("world")
    write_demo_data(folder, 0, SIZES)
    for part in ("train", "dev"):
        pairs = [json.loads(line) for line in (folder / f"pref_{part}.jsonl").read_text("utf-8").splitlines()]
        called = [
            {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
            for pair in pairs
            for name in ("chosen", "rejected")
        ]
        (folder / f"called_{part}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in called), "utf-8"
        )
    texts = [json.loads(line)["text"] for line in (folder / "pretrain.jsonl").read_text("utf-8").splitlines()]
    tokenizer = load.train_tokenizer(texts, 400)
    torch.manual_seed(3)
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, head in (("base", None), ("judge", ScalarHead(32))):
        lm = load.new_lm(TINY, len(tokenizer), ids)
        (folder / name).mkdir()
        save_model(folder / name, TreeModel(lm, probe(lm), head), tokenizer)
    return folder


def options_of(world: Path, folder: Path, stage: str, **changes: Any) -> dict[str, Any]:
    """Options of a short run of a stage that writes to `folder`, with changes."""
    data, held_out = {
        "pretrain": ("pretrain", "pretrain_dev"),
        "sft": ("sft_train", "sft_dev"),
        "reward": ("pref_train", "pref_dev"),
        "dpo": ("pref_train", "pref_dev"),
        "kto": ("called_train", "called_dev"),
        "ppo": ("prompts", "prompts_dev"),
        "grpo": ("prompts", "prompts_dev"),
    }[stage]
    made = {
        "stage": stage,
        "output_dir": str(folder),
        "model_name_or_path": str(world / "base"),
        "dataset": [str(world / f"{data}.jsonl")],
        "eval_dataset": [str(world / f"{held_out}.jsonl")],
        "cutoff_len": 128,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_steps": 0,
        "samples": 1,
        "precision": "fp32",  # comparisons to the last digits; test_precision.py has those in bf16
    }
    if stage == "ppo":
        made |= {"reward_model": str(world / "judge"), "max_new_tokens": 6, "group_size": 2, "ppo_epochs": 2,
                 "kl_target": 0.1}  # fmt: skip
    if stage == "grpo":
        made |= {"reward_function": "brevity", "max_new_tokens": 6, "group_size": 4}
    return made | changes


@pytest.fixture
def options(world: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`options_of` of the test's own folder."""
    return lambda stage, **changes: options_of(world, tmp_path / "run", stage, **changes)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """One stage in this process."""
    return run_stage(config.RawConfig(options))


def weights(options: dict[str, Any], name: str = "model") -> dict[str, torch.Tensor]:
    folder = Path(options["output_dir"]) / options.get("name", options["stage"]) / name
    return {key: t for file in sorted(folder.glob("*.safetensors")) for key, t in load_file(file).items()}


def rows(options: dict[str, Any]) -> list[dict[str, Any]]:
    file = Path(options["output_dir"]) / options.get("name", options["stage"]) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of weights with the same names."""
    assert a.keys() == b.keys() and a
    assert all(a[k].shape == b[k].shape for k in a)
    return max(float((a[k] - b[k]).abs().max()) for k in a if a[k].numel())


def start(options: dict[str, Any], tmp_path: Path, *, ranks: int = 1) -> subprocess.Popen[str]:
    """A stage in a process (or several) of its own, by the command line."""
    file = tmp_path / "options.yaml"
    file.write_text(json.dumps(options), "utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    extra = [f"num_processes={ranks}"] if ranks > 1 else []
    return processes.Popen(
        [sys.executable, "-m", "espalier.cli", "run", str(file), *extra],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str], *, code: int = 0) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said[-3000:]
    return said


def kill_at_checkpoint(process: subprocess.Popen[str], folder: Path, number: signal.Signals) -> None:
    """Wait for the first checkpoint of a run, then send the signal."""
    import time

    for _ in range(3000):
        if list(folder.glob("checkpoints/step-*/state.json")) or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=120)
