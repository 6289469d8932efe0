"""The 43 runs that a predecessor measured (V100 of 16 GB, DeepSpeed 0.8): who ran out of memory, and what the others took."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GPT2Config, T5Config

from espalier.plan.activations import activations
from espalier.plan.devices import device
from espalier.plan.memory import MIB, Method, ModelSizes, at_start, held, needed, reserved

CAPACITY = device("V100-16").memory
SHAPES: dict[str, tuple[Any, Any, int]] = {
    # Its sentences are far shorter than its limit of 512; 256 is what its run without DeepSpeed comes to.
    "T5-large": (AutoModelForSeq2SeqLM, T5Config(d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16), 256),
    "Pangu-2.6B": (AutoModelForCausalLM, GPT2Config(n_embd=2560, n_layer=32, n_head=32, vocab_size=40000), 512),
    "ChatGLM-6B": (
        AutoModelForCausalLM,
        GPT2Config(n_embd=4096, n_layer=28, n_head=32, vocab_size=130528, tie_word_embeddings=False),
        512,
    ),
    "GLM-10B-Chinese": (AutoModelForCausalLM, GPT2Config(n_embd=4096, n_layer=48, n_head=64, vocab_size=50048), 512),
}  # fmt: skip
"""Models of the same sizes, with attention as it was written then."""


@dataclass(frozen=True)
class Run:
    row: dict[str, str]
    model: ModelSizes
    method: Method

    @property
    def ran_out(self) -> bool:
        return self.row["oom"] != "no"

    @property
    def foreseen(self) -> bool:
        """Their trainer moved the whole model to the device first."""
        start = at_start(self.model.parameters, bytes_each=2 if self.row["model_half"] == "true" else 4)
        return max(needed(held(self.model, self.method), self.model, self.method), start) > CAPACITY

    @property
    def error(self) -> float:
        shown = reserved(held(self.model, self.method), self.model, self.method, int(0.97 * CAPACITY))
        return abs(shown / MIB / float(self.row["gpu_mem_mb_per_gpu"]) - 1)


@pytest.fixture(scope="module")
def runs(shared: Path) -> list[Run]:
    found: dict[tuple[str, bool], ModelSizes] = {}
    made = []
    for row in csv.DictReader((shared / "facts" / "deepspeed_runs.csv").open(encoding="utf-8")):
        plain = row["zero_stage"] == "-"
        kind, config, length = SHAPES[row["model"]]
        if (row["model"], plain) not in found:
            with torch.device("meta"):
                lm = kind.from_config(config, attn_implementation="eager")
            counted = activations(lm, length, 16, mixed=plain, dropout=True)
            assert counted.counted
            total = sum(p.numel() for p in lm.parameters())
            words, width = lm.get_input_embeddings().weight.shape
            layers = 48 if config.model_type == "t5" else config.n_layer
            found[row["model"], plain] = ModelSizes(
                total, total, words * width, 0, layers, width, words, counted.row, counted.casts
            )
        rows = int(row["batch_size_per_gpu"])
        method = Method(
            strategy="single" if plain else f"zero{row['zero_stage']}",
            processes=int(row["gpu_count"]),
            offload="none" if plain else "all" if row["offload_param"] == "true" else "optimizer",
            rows=rows,
            length=length,
            checkpointing=row["grad_checkpointing"] == "true",
            logits=rows * length,
            bucket=0 if plain else int(float(row["allgather_bucket_size"])),
        )
        made.append(Run(row, found[row["model"], plain], method))
    return made


def test_who_runs_out_of_memory(runs: list[Run]) -> None:
    right = [run.foreseen == run.ran_out for run in runs]
    assert len(right) == 43 and sum(right) >= 0.9 * 43
    assert {run.foreseen for run in runs} == {True, False}


def test_what_the_others_take(runs: list[Run]) -> None:
    errors = [run.error for run in runs if run.row["gpu_mem_mb_per_gpu"]]
    assert len(errors) == 25 and median(errors) <= 0.1 and max(errors) <= 0.2


def test_what_was_varied_moves_the_right_way(runs: list[Run]) -> None:
    """Fewer bytes with smaller buckets, more GPUs, a higher stage."""

    def at(number: int) -> int:
        run = runs[number - 1]
        assert run.row["row"] == str(number)
        return reserved(held(run.model, run.method), run.model, run.method, 2 * CAPACITY)

    assert at(2) > at(3) > at(8) and at(7) > at(8) > at(9) > at(11)
    assert at(25) > at(26) > at(28) and at(28) < at(29) < at(30)
