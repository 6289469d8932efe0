"""What a user does with a model of any family: sft, merge, evaluate, chat; and the other stages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer
from typer.testing import CliRunner

import espalier
from espalier import config
from espalier.cli import app
from espalier.models import load
from espalier.models.open import OpenModel
from espalier.runs.train import run_stage
from espalier.serve.model import ServedModel
from espalier.serve.session import Session
from espalier.serve.settings import AnswerSettings

SAID = [
    ("一加一等于几？", "二。", "三。"),
    ("天空是什么颜色？", "蓝色。", "很多。"),
    ("say hello", "hello there", "no"),
    ("你好", "你好呀", "再见。"),
]

ODD = (" 12345  60 m", "é e\u0301\n\n\t x", "床前1明2月光  ", "<|im_start|>user\n7<|im_end|>")
"""Where pre-tokenizers differ."""


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file


def options(stage: str, model: Path | str, folder: Path, **changes: Any) -> dict[str, Any]:
    """A run of a few steps on the tiny data."""
    data = write_lines(
        folder / f"{stage}.jsonl",
        [
            {"prompt": q, "completion": a}
            if stage == "sft"
            else {"prompt": q, "chosen": a, "rejected": b}
            if stage in ("reward", "dpo")
            else {"prompt": q, "reference": a}
            for q, a, b in SAID
        ],
    )
    made = {
        "stage": stage,
        "model_name_or_path": str(model),
        "dataset": [str(data)],
        "output_dir": str(folder / "run"),
        "max_steps": 2,
        "learning_rate": 1e-3,
        "cutoff_len": 64,
        "per_device_train_batch_size": 4,
        "precision": "fp32",
        "logging_steps": 1,
        "save_steps": 0,
    }
    return made | changes


def losses(options: dict[str, Any]) -> list[float]:
    file = Path(options["output_dir"]) / options["stage"] / "metrics.jsonl"
    found = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [row["loss"] for row in found if "loss" in row]


def run(options: dict[str, Any]) -> Path:
    """One stage; its model's folder. No loss may be anything but a number."""
    run_stage(config.RawConfig(options))
    found = losses(options)
    assert found and all(map(math.isfinite, found)), found
    return Path(options["output_dir"]) / options["stage"] / "model"


def encodes_as_written(tokenizer: Any, folder: Path) -> None:
    """The tokenizer's ids are those of the folder's own tokenizer.json."""
    truth = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (*ODD, *(line for said in SAID for line in said)):
        for add in (False, True):
            ids = truth.encode(text, add_special_tokens=add).ids
            assert tokenizer(text, add_special_tokens=add)["input_ids"] == ids, (type(tokenizer), text)


def from_sft_to_chat(model: Path, folder: Path, **changes: Any) -> None:
    """SFT with LoRA, merge, an exam of the merged model, a conversation with it."""
    asked = options(
        "sft", model, folder, finetuning_type="lora", lora_rank=4, max_steps=10, learning_rate=2e-2, **changes
    )
    adapter = run(asked)
    assert losses(asked)[-1] < losses(asked)[0]
    tuned, tokenizer = espalier.load_model(str(adapter), device="cpu")
    merged = folder / "merged"
    done = CliRunner().invoke(app, ["merge", str(adapter), str(merged)])
    assert done.exit_code == 0, done.exception
    plain, plain_tokenizer = espalier.load_model(str(merged), device="cpu")
    words = Path(changes.get("tokenizer", model))
    if (words / "tokenizer.json").is_file():
        for made in (
            tokenizer,
            plain_tokenizer,
            load.load_tokenizer(str(model)) if words == model else tokenizer,
        ):
            encodes_as_written(made, words)
    choices = [SAID[0][1], SAID[0][2]]
    before = espalier.score(tuned, tokenizer, SAID[0][0], choices)
    after = espalier.score(plain, plain_tokenizer, SAID[0][0], choices)
    assert [s for s, _ in after] == pytest.approx([s for s, _ in before], abs=1e-3)
    examined(merged, folder)
    served = ServedModel("merged", OpenModel(str(merged), plain, plain_tokenizer, None))
    session = Session(served, AnswerSettings(max_new_tokens=6, temperature=0))
    for question in (SAID[3][0], SAID[2][0]):
        assert all(isinstance(text, str) for _, text in session.ask(question))
    served.close()
    assert len(session.messages) == 4


def examined(model: Path, folder: Path) -> dict[str, Any]:
    """An exam that chooses and one that writes, by the command line."""
    rows = [{"question": q, "choices": [a, b], "answer": a, "answers": [a]} for q, a, b in SAID]
    write_lines(folder / "exam.jsonl", rows)
    task = {"data": "exam.jsonl", "question": "{{ question }}"}
    choose = {"name": "choose", "candidates": "choices", "answer_prefix": "", "gold": "answer"}
    write = {"generation": {"references": "answers", "metric": "exact_match", "max_new_tokens": 4}}
    files = []
    for name, said in (("choose", choose), ("write", {"name": "write", **write})):
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(task | said, allow_unicode=True), "utf-8")
    out = folder / "exam"
    names = ",".join(map(str, files))
    done = CliRunner().invoke(app, ["evaluate", str(model), "--tasks", names, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output + str(done.exception)
    found: dict[str, Any] = json.loads((out / "results.json").read_text("utf-8"))
    assert {name: row["n"] for name, row in found["tasks"].items()} == {"choose": 4, "write": 4}
    return found
