"""Every golden case of every family: logits, losses and greedy tokens of the original code; gradients."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import espalier
from espalier.models.convert import convert_folder
from tests.conftest import Golden
from tests.models.legacy.conftest import FAMILIES, Case, cases

TOLERANCE = 2e-5
UNREAD = {("pangu", "batch_left_int64_quirk"): "a mask of integers is a mask here, as in every other model"}
DEAD = {"pangu": ("k_proj.bias",)}
"""A bias of the keys adds the same to all scores of a query; where keys are rotated afterwards it counts."""


@cache
def loaded(folder: Path) -> Any:
    model, tokenizer = espalier.load_model(str(folder), device="cpu")
    assert tokenizer is None
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["loaded", "converted"])
def model(family: str, request: pytest.FixtureRequest, golden: Golden, tmp_path_factory: Any) -> Any:
    folder = golden(family)
    if request.param == "loaded":
        return loaded(folder)
    out = tmp_path_factory.mktemp(family) / "plain"
    convert_folder(folder, out)
    assert not list(out.glob("*.py"))
    return loaded(out)


def test_the_original_s_numbers(family: str, model: Any, golden: Golden) -> None:
    read = 0
    for case in cases(golden(family)):
        if (family, case.name) in UNREAD:
            continue
        read += 1
        if case.kind == "generate":
            check_generation(model, case)
        else:
            check_forward(model, case)
    assert read >= 5


def check_forward(model: Any, case: Case) -> None:
    with torch.no_grad():
        found = model(**case.inputs, labels=case.arrays.get("labels"))
    real = torch.ones(found.logits.shape[:2], dtype=torch.bool)
    if "compare_mask" in case.arrays:
        real = case.arrays["compare_mask"].bool()
    worst = (found.logits - case.arrays["logits"])[real].abs().max()
    assert worst < TOLERANCE, (case.name, worst)
    # In left-padded rows the first real token is scored from a pad's logits, which mean nothing.
    if case.loss is not None and bool(real[:, 0].all()):
        assert float(found.loss) == pytest.approx(case.loss, abs=TOLERANCE), case.name


def check_generation(model: Any, case: Case) -> None:
    settings = GenerationConfig(
        max_new_tokens=case.max_new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    end, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    try:
        found = model.generate(
            **case.inputs, generation_config=settings, output_logits=True, return_dict_in_generate=True
        )
    finally:
        model.generation_config.eos_token_id = end
    new = found.sequences[:, case.inputs["input_ids"].shape[1] :]
    assert torch.equal(new, case.arrays["new_tokens"]), case.name
    worst = (torch.stack(found.logits, 1) - case.arrays["step_logits"]).abs().max()
    assert worst < TOLERANCE, (case.name, worst)


def test_gradients_reach_every_parameter(family: str, golden: Golden) -> None:
    model = loaded(golden(family))
    case = next(c for c in cases(golden(family)) if c.name.startswith("seq19"))
    model.zero_grad()
    for checkpointed in (False, True):
        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        before = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad()
        model(**case.inputs, labels=case.arrays["labels"], use_cache=False).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            if not name.endswith(DEAD.get(family, ())):
                assert parameter.grad.abs().max() > 1e-6, name
            if checkpointed:
                torch.testing.assert_close(parameter.grad, before[name], atol=1e-6, rtol=1e-4)
    model.gradient_checkpointing_disable()
    model.zero_grad()
    model.eval()
