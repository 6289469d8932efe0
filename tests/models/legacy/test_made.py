"""The checkpoints that the tests make: there and back again, with and without the recorded ones beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

import espalier
from espalier.models.convert import convert_folder
from espalier.models.legacy.families import family_of
from tests.golden.configs import CONFIGS
from tests.golden.made import module_of
from tests.models.legacy.conftest import FAMILIES
from tests.models.legacy.plain import IDS, write


def test_every_family_is_made() -> None:
    assert tuple(sorted(CONFIGS)) == tuple(sorted(FAMILIES))
    for family, config in CONFIGS.items():
        found = family_of(config)
        assert found is not None and found.name == family.removesuffix("_v0")


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family: str, tmp_path: Path) -> None:
    """Original layout to a model, and converted: the logits of the module it was written from; a step is learned."""
    module, state = module_of(family, CONFIGS[family])
    folder = write(tmp_path / "old", CONFIGS[family], state)
    convert_folder(folder, tmp_path / "plain")
    with torch.no_grad():
        expected = module(input_ids=IDS).logits
    for place in (folder, tmp_path / "plain"):
        model: Any = espalier.load_model(str(place), device="cpu")[0]
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=0, atol=1e-6)
    trained = [p for p in model.parameters() if p.requires_grad]
    losses = []
    for _ in range(2):
        logits = model(input_ids=IDS).logits
        losses.append(F.cross_entropy(logits[0, :-1], IDS[0, 1:]))
        losses[-1].backward()
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter -= 1e-2 * parameter.grad
                    parameter.grad = None
    assert losses[1] < losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_tensor_in_another_place_is_noticed(family: str, tmp_path: Path) -> None:
    """The comparison above can fail: two of a layer's tensors of one shape change places."""
    module, state = module_of(family, CONFIGS[family])
    pairs = {
        "qwen": ("transformer.h.0.mlp.w1.weight", "transformer.h.0.mlp.w2.weight"),
        "chatglm": ("transformer.layers.0.input_layernorm.weight", "transformer.final_layernorm.weight"),
        "chatglm2": ("transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"),
        "glm": ("transformer.position_embeddings.weight", "transformer.block_position_embeddings.weight"),
        "moss": ("transformer.wte.weight", "lm_head.weight"),
        "pangu": ("transformer.wpe.weight", "transformer.wqe.weight"),
    }
    one, other = pairs.get(
        family.removesuffix("_v0"),
        ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"),
    )
    state[one], state[other] = state[other], state[one]
    model: Any = espalier.load_model(str(write(tmp_path, CONFIGS[family], state)), device="cpu")[0]
    with torch.no_grad():
        assert (model(input_ids=IDS).logits - module(input_ids=IDS).logits).abs().max() > 1e-3


def test_the_layouts_are_those_of_the_recorded_ones(shared: Path) -> None:
    """Made from the recorded config.json: the same names, shapes and types of tensors."""
    for family in FAMILIES:
        folder = shared / "golden" / family
        recorded = json.loads((folder / "config.json").read_text("utf-8"))
        assert set(CONFIGS[family]) <= set(recorded), family
        _, made = module_of(family, recorded)
        with safe_open(str(folder / "model.safetensors"), "pt") as held:
            wanted = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        assert {n: (tuple(t.shape), t.dtype) for n, t in made.items()} == {
            n: (tuple(t.shape), t.dtype) for n, t in wanted.items()
        }, family
        for name, tensor in wanted.items():
            if name.endswith(("inv_freq", "causal_mask", ".attn.bias", "masked_bias")):
                # some were saved by way of half precision
                torch.testing.assert_close(made[name], tensor, rtol=1e-3, atol=0)
