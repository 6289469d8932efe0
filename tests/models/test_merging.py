"""What is merged says what the base with its adapters says, for every kind of adapter and base, after a reload too."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn

import espalier
from espalier.errors import UserError
from espalier.models import load
from espalier.models.adapters.kinds import LoraVariant, add_ia3, add_lora
from espalier.models.dtypes import StoredTypes, round_weights
from espalier.models.forward import TreeModel, Want
from espalier.models.heads import ScalarHead
from espalier.models.merging import merged_stack, stack_of
from espalier.models.probe import probe
from espalier.models.quantise.methods import Quantisation
from espalier.models.saved import read_scalar_head, save_model
from espalier.trees import Tree, lay_out_padded
from tests.conftest import Golden
from tests.models.conftest import Tiny
from tests.models.legacy.conftest import FAMILIES, cases
from tests.test_cli import call

IDS = torch.arange(36).view(2, 18) % 97
KINDS: dict[str, Any] = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "up_proj"]),
    "rslora": LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_rslora=True),
    "dora": LoraConfig(r=4, target_modules=["v_proj", "up_proj"], use_dora=True),
    "bias": LoraConfig(r=4, target_modules=["q_proj"], bias="all"),
    "adalora": AdaLoraConfig(init_r=6, target_r=4, total_step=10, target_modules=["q_proj", "up_proj"]),
    "embeddings": LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
    "head": LoraConfig(r=4, target_modules=["lm_head", "q_proj"]),
    "saved": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "saved head": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "tied on purpose": LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    ),
}  # fmt: skip


def shaken(lm: nn.Module, seed: int = 1) -> nn.Module:
    """An adapter that says something: each of its numbers moved."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return lm


def said(lm: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return lm.eval()(input_ids=IDS).logits


def saved(lm: nn.Module, folder: Path) -> str:
    lm.save_pretrained(str(folder))  # type: ignore[operator]
    return str(folder)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", list(KINDS))
def test_logits_of_merged_are_those_of_base_and_adapter(
    kind: str, tied: bool, tiny: Tiny, tmp_path: Path
) -> None:
    base = saved(tiny("llama", tie_word_embeddings=tied), tmp_path / "base")
    adapted = shaken(get_peft_model(load.load_lm(base), copy.deepcopy(KINDS[kind])))  # type: ignore[arg-type]
    adapter = saved(adapted, tmp_path / "adapter")
    # As a user meets it: the saved adapter on its base.
    expected = said(PeftModel.from_pretrained(load.load_lm(base), adapter))  # type: ignore[arg-type]
    assert off(expected, said(load.load_lm(base))) > 0.01
    merged = merged_stack(stack_of([adapter]))
    assert off(said(merged), expected) < 1e-5
    again = load.load_lm(saved(merged, tmp_path / "merged"))
    assert off(said(again), expected) < 1e-5
    touched = kind in ("embeddings", "head", "saved", "saved head")
    config: Any = again.config
    assert config.tie_word_embeddings is (tied and not touched)


def test_a_stack_in_its_order_and_a_chain_of_bases(tiny: Tiny, tmp_path: Path) -> None:
    base = saved(tiny("qwen2"), tmp_path / "base")
    settings = LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    first = shaken(get_peft_model(load.load_lm(base), settings), 1)  # type: ignore[arg-type]
    one = saved(first, tmp_path / "one")
    once: Any = first.merge_and_unload()  # type: ignore[operator]
    second = shaken(get_peft_model(once, settings), 2)
    two = saved(second, tmp_path / "two")
    expected = said(second)
    assert off(said(merged_stack(stack_of([one, two], base))), expected) < 1e-5
    file = tmp_path / "two" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": one}))
    stack = stack_of([two])
    assert (stack.base, stack.adapters) == (base, (one, two))
    assert off(said(merged_stack(stack)), expected) < 1e-5
    assert stack_of([two], one) == stack_of([two])


def test_a_vocabulary_that_was_larger_in_training(tiny: Tiny, tmp_path: Path) -> None:
    base = saved(tiny("llama", tie_word_embeddings=True), tmp_path / "base")
    grown: Any = load.load_lm(base)
    grown.resize_token_embeddings(110)
    adapted = shaken(get_peft_model(grown, LoraConfig(r=4, target_modules=["q_proj"])))
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)  # type: ignore[operator]
    merged: Any = merged_stack(stack_of([str(tmp_path / "adapter")]))
    assert merged.config.vocab_size == 110 and off(said(merged), said(adapted)) < 1e-5
    again = load.load_lm(saved(merged, tmp_path / "merged"))
    assert off(said(again), said(adapted)) < 1e-5


@pytest.mark.parametrize("bits", [8, 4])
def test_a_base_in_few_bits_is_turned_back_first(bits: int, tiny: Tiny, tmp_path: Path) -> None:
    plain = saved(tiny("gpt2"), tmp_path / "plain")
    base = saved(load.load_lm(plain, quantisation=Quantisation("cpm", bits)), tmp_path / "base")
    adapted = shaken(get_peft_model(load.load_lm(base), LoraConfig(r=4, target_modules=["c_attn", "c_fc"])))  # type: ignore[arg-type]
    adapter = saved(adapted, tmp_path / "adapter")
    merged = merged_stack(stack_of([adapter]))
    assert off(said(merged), said(adapted)) < 1e-5
    assert off(said(load.load_lm(saved(merged, tmp_path / "merged"))), said(adapted)) < 1e-5
    on_plain = PeftModel.from_pretrained(load.load_lm(plain), adapter)  # type: ignore[arg-type]
    assert off(said(merged_stack(stack_of([adapter], plain))), said(on_plain)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_old_checkpoints(family: str, golden: Golden, tmp_path: Path) -> None:
    base = str(golden(family))
    case = next(c for c in cases(golden(family)) if c.name.startswith("seq19"))
    lm = espalier.load_model(base, device="cpu")[0]
    adapted = shaken(get_peft_model(lm, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")))  # type: ignore[arg-type]
    adapter = saved(adapted, tmp_path / "adapter")
    merged = merged_stack(stack_of([adapter]))
    with torch.no_grad():
        expected = adapted.eval()(**case.inputs).logits
        assert off(merged.eval()(**case.inputs).logits, expected) < 2e-5
        again = load.load_lm(saved(merged, tmp_path / "merged"))
        assert off(again(**case.inputs).logits, expected) < 2e-5


def test_a_reward_model_keeps_its_scores(tiny: Tiny, tmp_path: Path) -> None:
    lm = tiny("llama", vocab_size=300)
    tokenizer = load.train_tokenizer(["the quick brown fox"] * 4, 300)
    head = ScalarHead(32)
    (tmp_path / "base").mkdir()
    save_model(tmp_path / "base", TreeModel(lm, probe(lm)), tokenizer)
    adapted = shaken(get_peft_model(load.load_lm(str(tmp_path / "base")), copy.deepcopy(KINDS["lora"])))  # type: ignore[arg-type]
    (tmp_path / "adapter").mkdir()
    save_model(tmp_path / "adapter", TreeModel(adapted, probe(adapted), head), tokenizer)
    batch = lay_out_padded([Tree.from_path([1, 5, 7, 9], [False] * 4)])
    want = Want(logprobs=False, scores=True)
    expected = TreeModel(adapted, probe(adapted, wanted="padded"), head).eval()(batch, want).scores
    assert call("merge", str(tmp_path / "adapter"), str(tmp_path / "out")) == 0
    merged = load.load_lm(str(tmp_path / "out"))
    found = TreeModel(merged, probe(merged, wanted="padded"), read_scalar_head(str(tmp_path / "out"))).eval()
    assert off(found(batch, want).scores, expected) < 1e-5
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_labels"] == 1


def test_the_command_and_its_refusals(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = tiny("llama", vocab_size=300)
    tokenizer = load.train_tokenizer(["the quick brown fox"] * 4, 300)
    (tmp_path / "base").mkdir()
    save_model(tmp_path / "base", TreeModel(lm, probe(lm)), tokenizer)
    base = str(tmp_path / "base")
    adapter = saved(
        shaken(get_peft_model(load.load_lm(base), copy.deepcopy(KINDS["lora"]))), tmp_path / "adapter"
    )  # type: ignore[arg-type]
    out = tmp_path / "out"
    assert call("merge", adapter, adapter, str(out), "--base", base) == 0
    model, found = espalier.load_model(str(out), device="cpu")
    assert espalier.generate(model, found, ["the"], max_new_tokens=3)[0][0].tokens
    prompt = get_peft_model(
        load.load_lm(base),  # type: ignore[arg-type]
        PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    )
    virtual = saved(prompt, tmp_path / "prompt")
    capsys.readouterr()
    for arguments, line in (
        ([virtual, str(tmp_path / "o")], "virtual tokens"),
        ([base, str(tmp_path / "o")], "no adapter_config.json"),
        ([adapter, str(out)], "not empty"),
        ([adapter], "an adapter's folder and then"),
    ):
        assert call("merge", *arguments) == 2
        assert line in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(UserError, match="--base"):
        file = tmp_path / "adapter" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
        stack_of([adapter])


@pytest.mark.parametrize("kind", ["lora", "dora", "vocabulary", "ia3", "whole head"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_base_of_16_bits_is_merged_as_it_is_to_the_same_numbers(
    kind: str, dtype: torch.dtype, tiny: Tiny, tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    lm = tiny("llama", tie_word_embeddings=True)
    base.mkdir(), adapter.mkdir()
    save_model(base, TreeModel(lm, probe(lm)), None, types=StoredTypes(dtype))
    lm = load.load_lm(str(base))
    adapted: Any = add_ia3(lm, target=None) if kind == "ia3" else add_lora(
        lm, rank=2, alpha=4, dropout=0.0, bias="none",
        target=["all", "embed_tokens"] if kind == "vocabulary" else None,
        variant=LoraVariant(dora=kind == "dora", modules_to_save=["lm_head"] if kind == "whole head" else []),
    )  # fmt: skip
    with torch.no_grad():
        for at, parameter in enumerate(p for p in adapted.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(at)) * 0.1)
    save_model(adapter, TreeModel(adapted, probe(adapted)), None)
    stack = stack_of([str(adapter)])
    narrow, wide = merged_stack(stack, types=StoredTypes(dtype)), merged_stack(stack)
    layer = "model.layers.0.self_attn.k_proj.weight"
    assert narrow.get_parameter(layer).dtype == dtype and wide.get_parameter(layer).dtype == torch.float32
    for one in (narrow, wide):
        round_weights(one, StoredTypes(dtype))
    before, found, expected = (
        load.load_lm(str(base), dtype=dtype).state_dict(),
        narrow.state_dict(),
        wide.state_dict(),
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found[layer], before[layer])
