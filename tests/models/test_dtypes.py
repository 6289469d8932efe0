"""A base keeps its type of number through merging, and nothing is rounded but once.

u is half a step of bfloat16 relative to a number: its significand has 8 bits, so |rounded - w| <= 2^-8 |w|. A model's
logit moves by no more than u * sum |d logit / d w| |w|, to first order.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from espalier.errors import UserError
from espalier.models import load
from espalier.models.dtypes import FLOAT32, StoredTypes, dtype_to_use, hold_in, stored_types
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.merging import merged_stack, stack_of
from espalier.models.open import open_model
from espalier.models.probe import probe
from espalier.models.saved import read_scalar_head, save_model
from tests.models.conftest import Tiny
from tests.models.test_merging import IDS, off, said, shaken
from tests.test_cli import call

U = 2.0**-8
BF16 = StoredTypes(torch.bfloat16)
KINDS: dict[str, Any] = {
    "lora": LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"]),
    "dora": LoraConfig(r=4, lora_alpha=6, target_modules=["v_proj", "up_proj"], use_dora=True),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "embeddings": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tiny: Tiny, tmp_path: Path) -> Path:
    """A base in bfloat16, as most are published."""
    lm = tiny("llama", vocab_size=300, tie_word_embeddings=request.param)
    folder = tmp_path / "base"
    folder.mkdir()
    save_model(
        folder, TreeModel(lm, probe(lm)), load.train_tokenizer(["the quick brown fox"] * 4, 290), types=BF16
    )
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def size(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


def adapter_on(base: Path, kind: str, folder: Path, head: ScalarHead | None = None) -> nn.Module:
    """A trained adapter on the base, saved; the model as it was trained."""
    lm = shaken(get_peft_model(load.load_lm(str(base)), copy.deepcopy(KINDS[kind])))  # type: ignore[arg-type]
    folder.mkdir()
    save_model(folder, TreeModel(lm, probe(lm), head), None)
    return lm


def by_hand(base: Path, lm: nn.Module, kind: str) -> dict[str, Tensor]:
    """The merged weights in float32 by the formulas of the papers, from the base's file and the adapter's numbers."""
    made = {name: tensor.float() for name, tensor in tensors(base).items()}
    own = {n.removeprefix("base_model.model."): p.detach() for n, p in lm.named_parameters()}
    for name in list(made):
        layer = name.removesuffix(".weight")
        a, b = own.get(f"{layer}.lora_A.default.weight"), own.get(f"{layer}.lora_B.default.weight")
        if a is not None and b is not None:
            made[name] = made[name] + KINDS[kind].lora_alpha / 4 * (b @ a)
        if (length := own.get(f"{layer}.lora_magnitude_vector.default.weight")) is not None:
            made[name] = made[name] * (length / made[name].norm(dim=1))[:, None]
        if (scale := own.get(f"{layer}.ia3_l.default")) is not None:
            made[name] = made[name] * scale.reshape(-1, 1) if scale.shape[0] > 1 else made[name] * scale
        if (saved := own.get(f"{layer}.modules_to_save.default.weight")) is not None:
            made[name] = saved
    return made


def one_logit(lm: nn.Module) -> Tensor:
    made: Tensor = lm.eval()(input_ids=IDS[:1]).logits[0, -1, 7]
    return made


@pytest.mark.parametrize("kind", list(KINDS))
def test_merged_weights_are_the_sum_rounded_once(kind: str, base: Path, tmp_path: Path) -> None:
    trained = adapter_on(base, kind, tmp_path / "adapter")
    assert call("merge", str(tmp_path / "adapter"), str(tmp_path / "merged")) == 0
    found, exact = tensors(tmp_path / "merged"), by_hand(base, trained, kind)
    if kind == "embeddings" and "lm_head.weight" not in tensors(base):
        exact["lm_head.weight"] = tensors(base)["model.embed_tokens.weight"].float()
    assert found.keys() == exact.keys() and {t.dtype for t in found.values()} == {torch.bfloat16}
    touched = [
        n for n in exact if n not in tensors(base) or not torch.equal(exact[n], tensors(base)[n].float())
    ]
    assert touched
    for name, tensor in exact.items():
        # Where float32 itself stands between two numbers of bfloat16, the order of a sum decides.
        assert float((found[name] != tensor.bfloat16()).float().mean()) < 1e-3, name
        assert bool(((found[name].float() - tensor).abs() <= U * (1 + 1e-3) * tensor.abs()).all()), name
    assert any(not torch.equal(found[name].float(), exact[name]) for name in touched), "something was rounded"
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    alone = sum(t.numel() for t in exact.values()) * 2
    assert alone < size(tmp_path / "merged") < alone * 1.1
    # The logit, against that of the model that was trained.
    full = merged_stack(stack_of([str(tmp_path / "adapter")]))
    logit = one_logit(full)
    logit.backward()  # type: ignore[no-untyped-call]
    bound = U * sum(
        float((p.grad.abs() * p.detach().abs()).sum()) for p in full.parameters() if p.grad is not None
    )
    again = load.load_lm(str(tmp_path / "merged"))
    assert 0 < abs(float(one_logit(again) - one_logit(trained))) <= bound


def test_a_sum_of_rounded_parts_would_be_found(base: Path, tmp_path: Path) -> None:
    trained = adapter_on(base, "lora", tmp_path / "adapter")
    old, exact = tensors(base), by_hand(base, trained, "lora")
    name = "model.layers.0.mlp.up_proj.weight"
    twice = old[name] + (exact[name] - old[name].float()).bfloat16()
    assert float((twice != exact[name].bfloat16()).float().mean()) > 0.01


def test_a_reward_model_is_merged_in_its_type_and_keeps_its_head(base: Path, tmp_path: Path) -> None:
    head = ScalarHead(32)
    adapter_on(base, "lora", tmp_path / "adapter", head)
    for dtype, kind in (("auto", torch.bfloat16), ("float32", torch.float32)):
        out = tmp_path / dtype
        assert call("merge", str(tmp_path / "adapter"), str(out), "--dtype", dtype) == 0
        found = tensors(out)
        assert {t.dtype for n, t in found.items() if n != "score.weight"} == {kind}
        assert torch.equal(found["score.weight"], head.weight) and stored_types(str(out)).usual == kind
        again = read_scalar_head(str(out))
        assert again is not None and torch.equal(again.weight, head.weight)
    assert size(tmp_path / "auto") < 0.52 * size(tmp_path / "float32")


def test_what_was_trained_in_float32_is_saved_as_its_base_is(base: Path, tmp_path: Path) -> None:
    lm = load.load_lm(str(base))
    whole = {f"lm.{n}": p.detach() + 1e-4 * torch.randn_like(p) for n, p in lm.named_parameters()}
    for name, types in (("same", stored_types(str(base))), ("wide", FLOAT32)):
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, TreeModel(lm, probe(lm)), None, whole, types=types)
        for key, tensor in tensors(tmp_path / name).items():
            assert torch.equal(tensor, types.round(key, whole[f"lm.{key}"]))
        assert said(load.load_lm(str(tmp_path / name))).isfinite().all()
    assert size(tmp_path / "same") == pytest.approx(size(base), rel=0.01), "a shared matrix is written once"
    assert size(tmp_path / "wide") == pytest.approx(2 * size(base), rel=0.05)


def test_each_tensor_keeps_its_own_type(tiny: Tiny, tmp_path: Path) -> None:
    lm = tiny("llama")
    name = "model.norm.weight"
    (tmp_path / "mixed").mkdir()
    save_model(
        tmp_path / "mixed",
        TreeModel(lm, probe(lm)),
        None,
        types=StoredTypes(torch.bfloat16, {name: torch.float32}),
    )
    found = stored_types(str(tmp_path / "mixed"))
    assert found == StoredTypes(torch.bfloat16, {name: torch.float32})
    assert stored_types(str(tmp_path)) == stored_types("") == FLOAT32 and str(found) == "bfloat16"
    (tmp_path / "mixed" / "model.safetensors").rename(tmp_path / "kept")
    assert stored_types(str(tmp_path / "mixed")).usual == torch.bfloat16, "as its config.json says"


def test_what_float16_cannot_hold_is_refused() -> None:
    half = StoredTypes(torch.float16)
    assert half.round("w", torch.tensor([65519.0])).isfinite().all()
    with pytest.raises(UserError, match=r"w holds numbers up to 6.55e\+04, and float16 ends at 65504"):
        half.round("w", torch.tensor([1.0, -65520.0]))
    assert torch.isinf(torch.tensor(65520.0).half())
    ids = torch.tensor([1 << 20])
    assert half.round("ids", ids) is ids


@pytest.mark.parametrize(
    ("stored", "bits", "device", "used"),
    [
        ("bfloat16", "bf16", "cpu", "bfloat16"),
        ("bfloat16", "fp32", "cpu", "float32"),
        ("bfloat16", "fp16", "cuda:0", "float32"),
        ("bfloat16", "bf16", "cuda:0", "bfloat16"),
        ("float16", "bf16", "cpu", "float32"),
        ("float16", "fp16", "cuda", "float16"),
        ("float32", "bf16", "cuda", "float32"),
    ],
)
def test_auto_is_the_files_own_where_the_device_computes_in_it(
    stored: str, bits: str, device: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": stored}), "utf-8")
    monkeypatch.setattr("espalier.models.dtypes.best_precision", lambda kind: bits)
    assert dtype_to_use("auto", str(tmp_path), device) == getattr(torch, used)
    assert dtype_to_use("float16", str(tmp_path), device) == torch.float16, "what is asked for"


def test_models_are_opened_in_the_type_that_was_asked_for(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter_on(base, "lora", tmp_path / "adapter")
    monkeypatch.setattr("espalier.models.dtypes.best_precision", lambda kind: "bf16")
    for folder in (base, tmp_path / "adapter"):
        for wanted, kind in (
            ("auto", torch.bfloat16),
            ("float32", torch.float32),
            ("float16", torch.float16),
        ):
            opened = open_model(str(folder), device="cpu", dtype=wanted)
            assert {p.dtype for p in opened.lm.parameters()} == {kind}
    merged = merged_stack(stack_of([str(tmp_path / "adapter")]))
    low = open_model(str(tmp_path / "adapter"), device="cpu", dtype="bfloat16").lm
    assert off(low.state_dict()["lm_head.weight"], merged.state_dict()["lm_head.weight"].bfloat16()) == 0
    for words in (["chat", str(base)], ["merge", str(tmp_path / "adapter"), str(tmp_path / "out")]):
        assert call(*words, "--dtype", "half") == 2
        assert "--dtype half: wanted auto, float32, bfloat16 or float16." in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_frozen_layers_in_the_files_type_change_no_number_under_autocast(
    kind: str, base: Path, tmp_path: Path
) -> None:
    wide = adapter_on(base, kind, tmp_path / "adapter")
    narrow = copy.deepcopy(wide)
    tied = "lm_head.weight" not in tensors(base)
    frozen = [m.weight for m in narrow.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]
    expected = 2 * sum(w.numel() for w in frozen[: len(frozen) - tied])
    assert hold_in(narrow, torch.bfloat16, exactly=True) == expected > 0
    assert {p.dtype for p in narrow.parameters() if p.requires_grad} == {torch.float32}
    logits = []
    for lm in (wide, narrow):
        with torch.autocast("cpu", torch.bfloat16):
            logits.append(lm(input_ids=IDS).logits)
        logits[-1].float().square().mean().backward()
    assert torch.equal(logits[0], logits[1]) and off(logits[0].float(), said(wide)) > 1e-4
    pairs = [(a, b) for a, b in zip(wide.parameters(), narrow.parameters(), strict=True) if a.requires_grad]
    assert pairs and all(torch.equal(a.grad, b.grad) for a, b in pairs)  # type: ignore[arg-type]


def test_weights_that_would_be_rounded_are_left_unless_that_is_asked_for(tiny: Tiny) -> None:
    lm = tiny("gpt2").requires_grad_(False)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.copy_(parameter.bfloat16())
    layer: Any = lm.transformer.h[0].mlp.c_fc  # type: ignore[union-attr,index]
    layer.weight[0, 0] = 1 + 2.0**-12
    hold_in(lm, torch.bfloat16, exactly=True)
    assert (layer.weight.dtype, layer.bias.dtype) == (torch.float32, torch.bfloat16)
    hold_in(lm, torch.bfloat16, exactly=False)
    assert layer.weight.dtype == torch.bfloat16 and float(layer.weight[0, 0]) == 1
