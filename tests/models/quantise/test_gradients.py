"""What is trained below weights in few bits gets the gradients of the weights that they stand for, on every CPU."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from espalier.models import load
from espalier.models.forward import TreeModel, Want
from espalier.models.probe import probe
from espalier.models.quantise.methods import Quantisation
from espalier.models.quantise.turn import dequantised, is_quantised_layer, quantised
from espalier.trees import Tree, lay_out_tree

WIDE = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
NARROW = WIDE | {"hidden_size": 48, "intermediate_size": 80}
"""Rows that fill no block of 32 rows or 64 columns."""
bnb = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra `quant`)"
)
FOUR_BITS = [
    pytest.param(Quantisation("bnb", 4), id="nf4", marks=bnb),
    pytest.param(Quantisation("bnb", 4, kind="fp4", double=False), id="fp4", marks=bnb),
]
OTHERS = [
    pytest.param(Quantisation("bnb", 8), id="int8", marks=bnb),
    pytest.param(Quantisation("cpm", 4), id="cpm4"),
    pytest.param(Quantisation("cpm", 8), id="cpm8"),
]


@pytest.fixture
def avx512_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes as it is on a CPU with these instructions: its layers pack their weights in evaluation mode."""
    import bitsandbytes.nn.modules as layers

    monkeypatch.setattr(layers, "has_avx512bf16", lambda: True)


def _with_lora(lm: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    made: nn.Module = get_peft_model(lm, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))  # type: ignore[arg-type]
    for name, parameter in made.named_parameters():  # B begins at zero, and A then has no gradient
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return made


def _gradients(lm: nn.Module) -> dict[str, Tensor]:
    model = TreeModel(lm, probe(lm)).train()
    paths = [([5, 9, 3, *answer], [False] * 3 + [True] * len(answer)) for answer in ([7, 8, 1], [4, 4, 2, 1])]
    outputs = model(lay_out_tree([Tree.join(paths)]), Want())
    assert outputs.logprobs is not None
    outputs.logprobs.sum().backward()
    return {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}


def _plain(config: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return load.new_lm(config, 100, {"eos_token_id": 1, "pad_token_id": 0}).eval()


def _agree(config: dict[str, Any], wanted: Quantisation) -> None:
    few_bits = quantised(_plain(config), wanted)
    assert any(is_quantised_layer(module) for module in few_bits.modules())
    floats = dequantised(few_bits)
    assert not any(is_quantised_layer(module) for module in floats.modules())
    found, right = _gradients(_with_lora(few_bits)), _gradients(_with_lora(floats))
    assert found.keys() == right.keys() and any("q_proj.lora_A" in name for name in right)
    for name, truth in right.items():
        cosine = nn.functional.cosine_similarity(found[name].flatten(), truth.flatten(), dim=0)
        assert cosine > 0.999, (name, float(cosine))
        assert abs(found[name].norm() / truth.norm() - 1) < 0.01, name


@pytest.mark.parametrize("config", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("wanted", [*FOUR_BITS, *OTHERS])
def test_gradients_are_those_of_the_dequantised_weights(wanted: Quantisation, config: dict[str, Any]) -> None:
    _agree(config, wanted)


@bnb
@pytest.mark.usefixtures("avx512_bf16")
@pytest.mark.parametrize("config", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("wanted", FOUR_BITS)
def test_they_are_so_where_the_library_packs_weights(wanted: Quantisation, config: dict[str, Any]) -> None:
    _agree(config, wanted)


@bnb
@pytest.mark.usefixtures("avx512_bf16")
def test_a_saved_folder_is_never_packed_either(tmp_path: Any) -> None:
    lm: Any = quantised(_plain(NARROW), Quantisation("bnb", 4))
    lm.save_pretrained(tmp_path)
    again = load.load_lm(str(tmp_path))
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        assert (again(ids).logits - dequantised(lm)(ids).logits).abs().max() < 1e-4


@bnb
@pytest.mark.usefixtures("avx512_bf16")
def test_the_library_would_pack_them() -> None:
    """What these tests guard against is really there: a layer that nobody has told packs at its first forward."""
    from espalier.models.quantise.methods import settings

    lm: Any = _plain(WIDE)
    packed = type(lm).from_pretrained(
        None, config=lm.config, state_dict=lm.state_dict(), quantization_config=settings(Quantisation("bnb", 4))
    ).eval()  # fmt: skip
    layer = packed.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer(torch.ones(1, 64))
    assert layer.weight.quant_state.packing_format_for_cpu
