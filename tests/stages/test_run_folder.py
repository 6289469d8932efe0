"""Stages that begin from a run's folder begin from the model of its last stage, and say which that is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from espalier import config
from espalier.errors import UserError
from espalier.runs import checks
from espalier.runs.catalogue import CLASSES
from tests.stages.conftest import run

Make = Callable[..., dict[str, Any]]


@pytest.mark.slow
def test_an_adapter_and_a_model_are_found_in_the_folder_that_a_run_was_told_to_write(
    options: Make, tmp_path: Path
) -> None:
    lora = {"finetuning_type": "lora", "lora_rank": 2, "max_steps": 1, "eval_dataset": [], "samples": 0}
    first = options("sft", **lora, output_dir=str(tmp_path / "saves" / "sft"))
    run(first)
    saved = tmp_path / "saves" / "sft"
    after = options("sft", **lora, adapter_name_or_path=[str(saved)], output_dir=str(tmp_path / "dpo"))
    summary = run(after)
    model = saved / "sft" / "model"
    assert f"{saved}: the model of its last stage is taken, {model}" in summary["notes"]
    assert config.load_yaml(tmp_path / "dpo" / "sft" / "config.yaml")["adapter_name_or_path"] == [str(model)]
    assert run(after)["seconds"] == summary["seconds"], "done already"
    beside = options("dpo", **lora, model_name_or_path=str(saved), output_dir=str(saved))
    with pytest.raises(
        UserError, match=r"is sft, the folder that this stage writes to.*as in \S*saves/sft/sft\."
    ):
        run(beside)
    own = saved / "sft" / "summary.json"
    own.write_text(json.dumps(json.loads(own.read_text("utf-8")) | {"status": "stopped"}), "utf-8")
    with pytest.raises(UserError, match=r"saves/sft: this run is not finished: its stage sft is stopped"):
        run(options("sft", **lora, model_name_or_path=str(saved), output_dir=str(tmp_path / "again")))


def test_every_option_that_names_a_model_is_looked_up(
    options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_model", lambda name, say: f"{name}/found")
    raw = options("ppo", reward_model="judge", tokenizer="words", adapter_name_or_path=["a", "run:b"])
    built = config.build(config.RawConfig(raw), CLASSES["ppo"], all_classes=CLASSES)
    found = yaml.safe_load(config.dump_yaml(checks.with_models_found(built, say=pytest.fail)))
    assert found["model_name_or_path"].endswith("base/found") and found["reward_model"] == "judge/found"
    assert found["tokenizer"] == "words/found" and found["adapter_name_or_path"] == ["a/found", "run:b"]
    assert found["dataset"] == raw["dataset"]
