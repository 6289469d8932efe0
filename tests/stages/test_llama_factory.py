"""LLaMA-Factory's YAML with its dataset_info.json, run as it is for five stages on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from espalier import config
from espalier.runs.train import run_stage

FILE = """\
model_name_or_path: {world}/base
stage: {stage}
do_train: true
finetuning_type: full
dataset_dir: {folder}
dataset: {dataset}
template: ziya
cutoff_len: 128
max_samples: 8
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: {folder}/saves
logging_steps: 1
save_steps: 500
plot_loss: true
report_to: none
per_device_train_batch_size: 4
gradient_accumulation_steps: 1
learning_rate: 1.0e-4
max_steps: 1
lr_scheduler_type: cosine
bf16: false
"""
INFO = {
    "docs": {"file_name": "docs.json", "columns": {"prompt": "text"}},
    "chats": {"file_name": "chats.json"},
    "talks": {
        "file_name": "talks.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    },
    "pairs": {
        "file_name": "pairs.json",
        "ranking": True,
        "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"},
    },
}
FILES: dict[str, list[Any]] = {
    "docs": [{"text": f"document number {n} about trees"} for n in range(9)],
    "chats": [{"instruction": f"say {n}", "input": "", "output": f"{n}"} for n in range(9)],
    "talks": [{"messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": "a"}]} for n in range(9)],
    "pairs": [{"instruction": f"say {n}", "input": "now", "chosen": f"{n}", "rejected": "no"} for n in range(9)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "dataset", "more", "records"),
    [
        ("pt", "docs", "", 8),
        ("sft", "chats,talks", "", 16),
        ("rm", "pairs", "", 8),
        ("dpo", "pairs", "pref_beta: 0.1\npref_loss: sigmoid\n", 8),
        (
            "ppo",
            "chats",
            "reward_model: {world}/judge\nmax_new_tokens: 4\ntop_k: 0\ntop_p: 0.9\nppo_target: 6.0\n",
            8,
        ),
    ],
)
def test_a_file_runs_as_it_is(
    world: Path, tmp_path: Path, stage: str, dataset: str, more: str, records: int
) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO), encoding="utf-8")
    for name, rows in FILES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    path = tmp_path / "run.yaml"
    places = {"world": world, "folder": tmp_path, "stage": stage, "dataset": dataset}
    path.write_text(FILE.format(**places) + more.format(**places), encoding="utf-8")
    summary = run_stage(config.load_yaml(path))
    assert summary["status"] == "done"
    left = {
        cause: count
        for cause, count in summary.get("left_out", {}).items()
        if cause.startswith("max_samples")
    }
    assert sum(left.values()) in (0, len(dataset.split(",")))
    assert {Path(name).stem for name in summary["data"]} >= set(dataset.split(","))
