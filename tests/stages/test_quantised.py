"""Adapters trained on weights in few bits, in every stage: step 0 holds, the base stays, a stop changes nothing."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import espalier
from espalier.errors import UserError
from espalier.models.quantise.methods import Quantisation
from tests.stages.conftest import far, rows, run, weights
from tests.stages.test_coincide import _stopped as stopped

Make = Callable[..., dict[str, Any]]
QLORA = {"finetuning_type": "lora", "lora_rank": 4}
bnb = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra `quant`)"
)
METHODS = [
    pytest.param({"quantization_method": "cpm", "quantization_bit": 4}, id="cpm4"),
    pytest.param({"quantization_method": "cpm", "quantization_bit": 8}, id="cpm8"),
    pytest.param({"quantization_bit": 4}, id="nf4", marks=bnb),
    pytest.param(
        {"quantization_bit": 4, "quantization_type": "fp4", "double_quantization": False}, id="fp4", marks=bnb
    ),
    pytest.param({"quantization_bit": 8}, id="int8", marks=bnb),
]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_sft_learns_on_any_of_them(method: dict[str, Any], options: Make) -> None:
    made = options("sft", max_steps=20, learning_rate=1e-2, **QLORA, **method)
    summary = run(made)
    losses = [row["eval_loss"] for row in rows(made) if "eval_loss" in row]
    assert losses[-1] < losses[0] - 0.1
    assert all("lora_" in name for name in weights(made))
    assert summary["layout"] == "tree"
    plain = espalier.load_model(made["model_name_or_path"], device="cpu")[0]
    own = sum(p.numel() for p in plain.parameters())
    assert summary["parameters"] == own + summary["trainable_parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("method", [METHODS[0], METHODS[2]])
@pytest.mark.parametrize("stage", ["reward", "dpo", "ppo", "grpo"])
def test_every_stage_starts_where_it_must(stage: str, method: dict[str, Any], options: Make) -> None:
    """The stages refuse a first step that is off: ln 2, a margin of 0, a ratio of 1 and no KL."""
    made = options(stage, max_steps=2, **QLORA, **method)
    run(made)
    first = rows(made)[1]
    if stage == "dpo":
        assert abs(first["loss"] - 0.6931) < 1e-4
    if stage in ("ppo", "grpo"):
        assert abs(first["ratio"] - 1) < 1e-4 and abs(first["kl"]) < 1e-3
    assert all("lora_" in name or "scalar_head" in name for name in weights(made))


@pytest.mark.slow
def test_a_stop_in_the_middle_changes_nothing(options: Make) -> None:
    method = {"quantization_method": "cpm", "quantization_bit": 4}
    whole = options("sft", **QLORA, **method, max_steps=6, name="whole")
    run(whole)
    broken = options("sft", **QLORA, **method, max_steps=6, name="broken", save_steps=1)
    stopped(broken, 3)
    run(broken)
    assert far(weights(whole), weights(broken)) == 0.0


@pytest.mark.slow
def test_an_adapter_names_its_base_and_meets_it_plain_or_quantised(options: Make, world: Path) -> None:
    made = options("sft", **QLORA, quantization_method="cpm", quantization_bit=8)
    run(made)
    folder = Path(made["output_dir"]) / "sft" / "model"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        world / "base"
    )
    plain, tokenizer = espalier.load_model(str(folder), device="cpu")
    assert espalier.score(plain, tokenizer, "a", ["b"])[0][1] > 0
    on_it = options("sft", **QLORA, quantization_method="cpm", quantization_bit=8, max_steps=1) | {
        "model_name_or_path": str(folder), "name": "more"}  # fmt: skip
    assert "cpm, 8 bits" in " ".join(run(on_it)["notes"])


@pytest.mark.slow
def test_a_quantised_folder_is_trained_by_an_adapter_alone(
    options: Make, world: Path, tmp_path: Path
) -> None:
    from espalier.models import load

    folder = tmp_path / "small"
    lm = load.load_lm(str(world / "base"), quantisation=Quantisation("cpm", 8))
    lm.save_pretrained(folder)  # type: ignore[operator]
    load.load_tokenizer(str(world / "base")).save_pretrained(folder)
    with pytest.raises(UserError, match="finetuning_type: lora"):
        run(options("sft") | {"model_name_or_path": str(folder)})
    with pytest.raises(UserError, match="quantised already"):
        run(options("sft", **QLORA, quantization_bit=8, quantization_method="cpm")
            | {"model_name_or_path": str(folder)})  # fmt: skip
    made = options("sft", **QLORA) | {"model_name_or_path": str(folder)}
    run(made)
    adapter = str(Path(made["output_dir"]) / "sft" / "model")
    merged, _ = espalier.load_model(
        adapter, device="cpu"
    )  # turned back into floats, so that nothing is rounded
    from espalier.models.adapters.adapter import load_adapter

    on_top = load_adapter(load.load_lm(str(folder)), adapter, trainable=False).eval()
    ids = torch.randint(0, 300, (2, 9))
    with torch.no_grad():
        assert (merged(ids).logits - on_top(ids).logits).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization_method": "cpm", "quantization_bit": 3}, "for 3 bits there is torchao"),
        ({"quantization_method": "gptq", "quantization_bit": 4}, "there are bnb, cpm, torchao"),
        ({"quantization_bit": 4, "strategy": "fsdp"}, "single or ddp"),
        ({"quantization_bit": 4, "strategy": "zero2"}, "single or ddp"),
        ({"quantization_bit": 4, "finetuning_type": "full"}, "cannot be trained"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str, options: Make) -> None:
    with pytest.raises(UserError, match=said):
        run(options("sft", **{**QLORA, **changes}))


def test_a_library_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, options: Make
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name)
    )
    with pytest.raises(UserError, match=r"espalier-llm\[quant\]"):
        run(options("sft", **QLORA, quantization_bit=4))
