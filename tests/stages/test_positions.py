"""Texts that are longer than a model's positions: refused where it has a table of them, said where it has not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from espalier.errors import UserError
from tests.families.chain import options, run, write_lines
from tests.families.test_families import FAMILIES, saved

LONG = [{"prompt": "你好" * 20, "completion": "hello there" * 4}]


def test_a_table_of_positions_ends(tmp_path: Path) -> None:
    model = saved(tmp_path / "base", "gpt2", FAMILIES["gpt2"] | {"n_positions": 32})
    run(options("sft", model, tmp_path))  # fits, whatever cutoff_len would allow
    asked = options("sft", model, tmp_path, output_dir=str(tmp_path / "long"), cutoff_len=512)
    asked["dataset"] = [str(write_lines(tmp_path / "long.jsonl", LONG))]
    with pytest.raises(UserError, match=r"gpt2 has 32 positions. Set cutoff_len: 32"):
        run(asked)
    sampled = {"reward_function": "brevity", "max_new_tokens": 30, "max_prompt_length": 40, "group_size": 2}
    with pytest.raises(UserError, match="Set max_prompt_length: 2"):
        run(options("grpo", model, tmp_path, **sampled))


def test_rotary_positions_go_on_and_it_is_said(tmp_path: Path) -> None:
    model = saved(tmp_path / "base", "llama", FAMILIES["llama"] | {"max_position_embeddings": 32})
    asked = options("sft", model, tmp_path, cutoff_len=512)
    asked["dataset"] = [str(write_lines(tmp_path / "long.jsonl", LONG))]
    run(asked)
    summary = json.loads((tmp_path / "run" / "sft" / "summary.json").read_text("utf-8"))
    assert any("the model is made for 32" in line and "rope_scaling" in line for line in summary["notes"])
    scaled = options("sft", model, tmp_path, cutoff_len=512, output_dir=str(tmp_path / "scaled"))
    scaled |= {"dataset": asked["dataset"], "rope_scaling": "yarn"}
    run(scaled)
    summary = json.loads((tmp_path / "scaled" / "sft" / "summary.json").read_text("utf-8"))
    assert not any("is made for" in line for line in summary["notes"])
