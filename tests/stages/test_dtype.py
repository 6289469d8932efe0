"""The types of a run's weights: frozen ones as in the base's files, trained ones float32, files as the base has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier import config
from espalier.models import load
from espalier.models.dtypes import StoredTypes
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.models.saved import save_model
from espalier.runs.catalogue import CLASSES
from tests.stages.conftest import TINY, far, rows, run, weights

Make = Callable[..., dict[str, Any]]
LORA = {"finetuning_type": "lora", "lora_rank": 2, "max_steps": 2, "samples": 0, "precision": "bf16"}


@pytest.fixture
def half(world: Path, tmp_path: Path) -> dict[str, Any]:
    """Options that name a base in bfloat16 whose head is its own."""
    tokenizer = load.load_tokenizer(str(world / "base"))
    torch.manual_seed(5)
    lm = load.new_lm({**TINY, "tie_word_embeddings": False}, len(tokenizer), {"eos_token_id": 0})
    (tmp_path / "half").mkdir()
    save_model(tmp_path / "half", TreeModel(lm, probe(lm)), tokenizer, types=StoredTypes(torch.bfloat16))
    return {"model_name_or_path": str(tmp_path / "half"), "learning_rate": 0.02}


def numbers(options: dict[str, Any]) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in rows(options) if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo", "ppo"])
def test_lora_on_frozen_weights_in_the_files_type_learns_the_same(
    stage: str, options: Make, half: dict[str, Any]
) -> None:
    narrow = options(stage, **LORA, **half, name="narrow")
    wide = options(stage, **LORA, **half, name="wide", dtype="float32")
    notes, others = run(narrow)["notes"], run(wide)["notes"]
    line = "linear layers that are not trained are held in bfloat16"
    assert any(line in note for note in notes) and not any(line in note for note in others)
    assert numbers(narrow) == numbers(wide) and numbers(narrow)[0][1] > 0
    assert far(weights(narrow), weights(wide)) == 0
    assert {t.dtype for t in weights(narrow).values()} == {torch.float32}, "an adapter is as it was trained"


@pytest.mark.slow
def test_a_full_training_is_saved_as_its_base_is_and_goes_on_in_float32(
    options: Make, half: dict[str, Any]
) -> None:
    common = {**half, "max_steps": 2, "samples": 0, "save_steps": 1, "eval_dataset": []}
    auto, wide = (
        options("sft", **common, name="auto"),
        options("sft", **common, name="wide", save_dtype="float32"),
    )
    summary = run(auto)
    assert summary["saved_types"] == {"model": "bfloat16"}
    assert any("model is saved in bfloat16, each weight rounded once" in note for note in summary["notes"])
    assert run(wide)["saved_types"] == {"model": "float32"}
    small, full = weights(auto), weights(wide)
    assert all(torch.equal(small[name], tensor.bfloat16()) for name, tensor in full.items())
    assert far({n: t.float() for n, t in small.items()}, full) > 0, (
        "training has moved them between its steps"
    )
    size = (Path(auto["output_dir"]) / "auto" / "model" / "model.safetensors").stat().st_size
    assert size == pytest.approx(2 * sum(t.numel() for t in small.values()), rel=0.1)
    assert (
        json.loads((Path(auto["output_dir"]) / "auto/model/config.json").read_text("utf-8"))["dtype"]
        == "bfloat16"
    )


@pytest.mark.slow
def test_a_type_that_cannot_be_had_is_said(options: Make, half: dict[str, Any]) -> None:
    common = {**half, "max_steps": 1, "samples": 0, "eval_dataset": [], "torch_dtype": "bf16"}
    for changes, why in (
        ({"precision": "fp32"}, r"products of float32 (precision: fp32) take no weights of 16 bits"),
        ({"precision": "bf16"}, "it is for linear layers that are not trained, and all are"),
    ):
        notes = run(options("sft", **common | changes, name=changes["precision"]))["notes"]
        assert any(
            "weights stay float32 in spite of dtype: bfloat16" in note and why in note for note in notes
        )


@pytest.mark.slow
def test_policy_and_reference_are_computed_in_one_precision(options: Make) -> None:
    """With the reference in float32 beside a policy in bf16, pairs have margins before anything is learned.

    What is computed beforehand is so pair by pair, so here each pair is a row of its own: a product of another shape
    may round another way in bf16.
    """
    whole = options("dpo", precision="bf16", max_steps=1, samples=0, name="whole")
    before = {"precompute_ref_logprobs": True, "packing": False, "max_steps": 1, "name": "adapter"}
    adapter = options("dpo", **LORA | before)
    for chosen in (whole, adapter):
        run(chosen)
        (first,) = [row for row in rows(chosen) if "loss" in row]
        assert abs(first["margin"]) < 1e-6 and rows(chosen)[0]["eval_margin"] == 0


def test_names_of_others_are_the_same_option() -> None:
    raw = config.RawConfig({"stage": "sft", "model": "m", "dataset": ["d"], "torch_dtype": "fp16"})
    built = config.build(raw, CLASSES["sft"], all_classes=CLASSES)
    assert "dtype: float16" in config.dump_yaml(built)
