"""Every method on several architectures: quantised on the way in, in memory, saved, loaded, turned back, with LoRA."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import espalier
from espalier.errors import UserError
from espalier.models import load
from espalier.models.adapters.kinds import add_lora
from espalier.models.probe import probe
from espalier.models.quantise.methods import Quantisation, described, entry_of, problem, settings
from espalier.models.quantise.sizes import held_bytes
from espalier.models.quantise.turn import dequantised, is_quantised, number_of_weights, quantised
from tests.conftest import Golden
from tests.models.conftest import Tiny
from tests.models.legacy.conftest import FAMILIES, cases

IDS = torch.arange(36).view(2, 18) % 97


def method(*settings: Any, library: str | None = None, extra: str = "quant") -> Any:
    missing = library is not None and importlib.util.find_spec(library) is None
    marks = [pytest.mark.skipif(missing, reason=f"{library} is not installed (extra `{extra}`)")]
    found = Quantisation(*settings)
    return pytest.param(
        found, id=f"{found.method}{found.bits}{found.kind if found.bits == 4 else ''}", marks=marks
    )


METHODS = [
    method("cpm", 8), method("cpm", 4),
    method("bnb", 8, library="bitsandbytes"), method("bnb", 4, library="bitsandbytes"),
    method("bnb", 4, "fp4", False, library="bitsandbytes"),
    *(method("torchao", bits, library="torchao", extra="torchao") for bits in (2, 3, 4, 8)),
]  # fmt: skip


def said(lm: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return lm.eval()(input_ids=ids).logits


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("wanted", METHODS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "falcon", "bloom"])
def test_all_ways_in_and_out_agree(name: str, wanted: Quantisation, tiny: Tiny, tmp_path: Path) -> None:
    plain = tiny(name)
    plain.save_pretrained(tmp_path / "plain")  # type: ignore[operator]
    folder = str(tmp_path / "plain")
    if (wanted.method, name) in (("torchao", "gpt2"), ("torchao", "falcon"), ("bnb", "falcon")):
        with pytest.raises(UserError, match="Take cpm"):  # it would silently store nothing
            load.load_lm(folder, quantisation=wanted)
        return
    small: Any = load.load_lm(folder, quantisation=wanted)
    truth = said(small)
    assert 0 < off(truth, said(plain)) < 4 * 2.0 ** (8 - wanted.bits)
    assert off(said(quantised(load.load_lm(folder), wanted)), truth) == 0
    small.save_pretrained(tmp_path / "small")
    again = load.load_lm(str(tmp_path / "small"))
    assert off(said(again), truth) == 0 and is_quantised(again)
    entry = entry_of(str(tmp_path / "small"))
    assert (
        entry is not None and f"{wanted.bits} bits" in described(entry) and wanted.method in described(entry)
    )
    back: Any = dequantised(again)
    int8_activations = (wanted.method, wanted.bits) == ("bnb", 8)
    assert off(said(back), truth) < (0.5 if int8_activations else 2e-4)
    assert [type(m) for m in back.modules()] == [type(m) for m in plain.modules()]
    assert number_of_weights(small) == number_of_weights(plain) or wanted.method == "torchao"
    adapted = add_lora(small, rank=2, alpha=None, dropout=0.0, target=None, bias="none")
    adapted(input_ids=IDS).logits.square().mean().backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.dtype == torch.float32 for p in trained)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_linear_layer_but_the_head_follows_the_formula(
    name: str, bits: int, tiny: Tiny, tmp_path: Path
) -> None:
    plain = tiny(name)
    plain.save_pretrained(tmp_path)  # type: ignore[operator]
    truth = copy.deepcopy(plain)
    head = truth.get_output_embeddings()  # type: ignore[operator]
    count = 0
    for module in truth.modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            rows = module.weight.data.t() if isinstance(module, Conv1D) else module.weight.data
            scale = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            rows.copy_(torch.round(rows / scale) * scale)
            count += 1
    small = load.load_lm(str(tmp_path), quantisation=Quantisation("cpm", bits))
    assert off(said(small), said(truth)) < 1e-4
    assert sum(type(m).__name__ == "CpmLinear" for m in small.modules()) == count
    held, whole = held_bytes(small), held_bytes(plain)
    linear = sum(
        m.weight.numel() for m in truth.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head
    )
    assert held[f"int{bits}"] == linear * bits // 8 and held["float32"] < whole["float32"] - 4 * linear * 0.9


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_old_checkpoints(family: str, bits: int, golden: Golden, tmp_path: Path) -> None:
    folder = str(golden(family))
    case = next(c for c in cases(golden(family)) if c.name.startswith("seq19"))
    plain = espalier.load_model(folder, device="cpu")[0]
    small: Any = load.load_lm(folder, quantisation=Quantisation("cpm", bits))
    with torch.no_grad():
        truth = small.eval()(**case.inputs).logits
        assert 0 < off(truth, plain(**case.inputs).logits) < 10
        small.save_pretrained(tmp_path)
        again = espalier.load_model(str(tmp_path), device="cpu")[0]
        assert off(again(**case.inputs).logits, truth) == 0
        assert off(dequantised(small)(**case.inputs).logits, truth) < 1e-4
    assert probe(small).method == probe(plain).method


def test_what_a_method_cannot_do_is_said_by_name(tiny: Tiny, tmp_path: Path) -> None:
    for wanted, line in (
        (Quantisation("cpm", 3), "for 3 bits there is torchao"),
        (Quantisation("bnb", 2), "4 or 8 bits, not in 2"),
        (Quantisation("gptq", 4), "GPTQModel"),
        (Quantisation("nonsense", 4), "there are bnb, cpm, torchao"),
        (Quantisation("cpm", 8, group_size=32), "group size"),
    ):
        assert line in str(problem(wanted))
        with pytest.raises(UserError):
            settings(wanted)
    assert problem(Quantisation("torchao", 2, group_size=64)) is None
    small = load.load_lm
    tiny("llama").save_pretrained(tmp_path)  # type: ignore[operator]
    quantised_already = small(str(tmp_path), quantisation=Quantisation("cpm", 8))
    with pytest.raises(UserError, match="quantised already"):
        quantised(quantised_already, Quantisation("cpm", 4))


@pytest.mark.parametrize(("kind", "library"), [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("hqq", "hqq")])
def test_folders_of_other_tools_name_what_reads_them(
    kind: str, library: str, tiny: Tiny, tmp_path: Path
) -> None:
    if importlib.util.find_spec(library) is not None:
        pytest.skip(f"{library} is installed")
    tiny("llama").save_pretrained(tmp_path)  # type: ignore[operator]
    file = tmp_path / "config.json"
    entry = {"quant_method": kind, "bits": 4, "group_size": 128}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": entry}))
    with pytest.raises(UserError, match=f"needs {library}, which is not installed"):
        load.load_lm(str(tmp_path))
