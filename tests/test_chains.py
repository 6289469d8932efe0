"""The examples as a newcomer runs them, in a size that ends within a minute."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests import processes

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["max_samples=120", "max_new_tokens=8", "vocab_size=2000", "cutoff_len=256"]
STAGES = {"pretrain": 40, "sft": 20, "reward": 20, "dpo": 20, "ppo": 8, "grpo": 8}
"""Held-out records of each stage."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chinese_chain", "english_chain"])
def test_an_example_runs_from_text_to_exam(name: str, tmp_path: Path, shared: Path) -> None:
    text = (ROOT / "examples" / f"{name}.yaml").read_text("utf-8")
    assert "../shared/data" in text
    file = tmp_path / f"{name}.yaml"
    small = re.sub(r"(hidden_size|intermediate_size): (\d+)", lambda m: f"{m[1]}: {int(m[2]) // 2}", text)
    small = re.sub(r"num_hidden_layers: \d+", "num_hidden_layers: 2", small)
    file.write_text(small.replace("../shared/data", str(shared / "data")), "utf-8")
    stages = {stage["name"]: stage["stage"] for stage in yaml.safe_load(text)["stages"]}
    trained = [stage for stage in stages if stages[stage] != "evaluate"]
    exams = [stage for stage in stages if stages[stage] == "evaluate"]
    assert trained == list(STAGES) and len(exams) >= 2
    out = tmp_path / "run"
    words = [f"output_dir={out}", *QUICK, *(f"{exam}.limit=4" for exam in exams)]
    for stage, held_out in STAGES.items():
        words += [f"{stage}.max_steps=2", f"{stage}.val_size={held_out}"]
        size = "tokens_per_step=1024" if stage in ("pretrain", "sft") else "per_device_train_batch_size=4"
        words.append(f"{stage}.{size}")
    done = processes.run(
        [sys.executable, "-m", "espalier.cli", "run", str(file), *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in trained:
        summary = json.loads((out / stage / "summary.json").read_text("utf-8"))
        assert summary["status"] == "done" and summary["steps"] == 2
        assert {"before", "after", "n"} <= summary["held_out"].keys(), (
            "every stage is judged on what it never saw"
        )
        assert (out / stage / "model" / "model.safetensors").is_file()
    for exam in exams:
        results = json.loads((out / exam / "results.json").read_text("utf-8"))
        assert results["tasks"] and all(task["n"] >= 4 for task in results["tasks"].values())
    page = (out / "report.html").read_text("utf-8")
    assert all(stage in page for stage in stages)
