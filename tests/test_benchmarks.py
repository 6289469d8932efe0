"""The benchmark on a real model keeps step with the options, and its table says what its parts have measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from espalier import config
from espalier.config.options import TrainOptions
from espalier.runs.catalogue import CLASSES
from espalier.stages.rollout_options import RolloutOptions


@pytest.fixture(scope="module")
def real_model() -> ModuleType:
    folder = str(Path(__file__).resolve().parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import real_model as module
    finally:
        sys.path.remove(folder)
    return module


def test_its_options_are_options(real_model: ModuleType, tmp_path: Path) -> None:
    for part in real_model.STEPS:
        raw = config.RawConfig(real_model.options_of(tmp_path, part, 1))
        made = config.build(raw, CLASSES[part], all_classes=CLASSES)
        assert made[TrainOptions].max_steps == real_model.STEPS[part]
        if part == "ppo":
            assert [spec.weight for spec in made[RolloutOptions].specs] == [1, 0.5, 0.5]


def test_its_table_has_a_row_for_each_part_that_ran(real_model: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    spent = {"samples": 640, "cpu_seconds": 320.0, "minutes": 9.6, "seed": 1}
    ours = {
        **spent, "part": "grpo",
        "held_out": {"name": "reward", "before": 0.02, "stderr_before": 0.01, "after": 0.5, "stderr_after": 0.04},
        "before": {"eval_kl": 0.0, "eval_ended": 0.25}, "after": {"eval_kl": 4.25, "eval_ended": 0.9},
    }  # fmt: skip
    theirs = {
        **spent,
        "part": "trl_grpo",
        "steps": 3,
        "name": "reward",
        "numbers": [[0.02, 0.01], [0.03, 0.01]],
    }
    for row in (ours, theirs):
        (tmp_path / "results" / f"{row['part']}-1.json").write_text(json.dumps(row), "utf-8")
    head, _, first, second = real_model.shown(tmp_path)
    assert head.count("|") == first.count("|") == second.count("|")
    assert "0.020 ± 0.010 | 0.500 ± 0.040 | 0.00 → 4.25 | 0.25 → 0.90 | 2.00 | 10 |" in first
    assert second.startswith("| trl_grpo, seed 1, 3 steps | reward | 0.020 ± 0.010 | 0.030 ± 0.010 |")
