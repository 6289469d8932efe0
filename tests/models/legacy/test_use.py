"""Old models in the hands of the rest: layouts, sampling, adapters, saving."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import espalier
from espalier.errors import UserError
from espalier.models.adapters import adapter as adapters
from espalier.models.adapters import kinds as adapter_kinds
from espalier.models.adapters.freezing import blocks, freeze_lowest
from espalier.models.adapters.targets import vocabulary_layers
from espalier.models.forward import TreeModel, Want
from espalier.models.load import checkpoint_activations, context_length, load_lm
from espalier.models.positions.rope import original_length
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample
from espalier.models.saved import save_model
from espalier.trees import Tree, lay_out_padded, lay_out_tree
from tests.conftest import Golden
from tests.models.legacy.conftest import FAMILIES, cases

PADDED = ("chatglm", "glm")
"""Their prompts are read both ways, which is no tree."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str, golden: Golden) -> Any:
    return espalier.load_model(str(golden(family)), device="cpu")[0]


def test_the_layout_is_earned(family: str, model: Any) -> None:
    traits = probe(model)
    expected = "padded" if family in PADDED else "dense" if family == "moss" else "pieces"
    assert traits.method == expected, traits.reason
    assert traits.plain_head


def test_sampling_gives_the_original_s_tokens(family: str, model: Any, golden: Golden) -> None:
    traits = probe(model)
    for case in cases(golden(family)):
        if case.kind != "generate" or (family in PADDED and case.inputs["input_ids"].shape[0] > 1):
            continue
        ids = case.inputs["input_ids"]
        mask = case.inputs.get("attention_mask", torch.ones_like(ids))
        if family == "glm":  # the tiny stand-ins for the ids that config.json does not name
            model.config.bos_token_id, model.config.blank_token_ids = 246, [243, 248, 249]
            mask = torch.ones_like(ids)
        prompts = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
        found = sample(model, traits, prompts, Sampling(case.max_new_tokens, temperature=0))
        for row, answers in enumerate(found):
            assert answers[0].tokens == case.arrays["new_tokens"][row].tolist(), case.name


@pytest.mark.parametrize("kind", ["ia3", "prompt", "prefix"])
def test_other_adapters_say_the_same_in_both_layouts(family: str, kind: str, model: Any) -> None:
    """Or are refused by name: virtual tokens where the prompt is found by its ids."""
    lm = copy.deepcopy(model)
    if kind != "ia3" and family in PADDED:
        with pytest.raises(UserError, match="by marks among the ids"):
            adapters.check_virtual(lm, kind)
        return
    if kind == "prefix" and family in ("baichuan_13b", "baichuan2_13b"):
        with pytest.raises(UserError, match="its keys hold more than its heads"):
            adapters.add_prefix(lm, tokens=3, text=None, projection=False, hidden_size=8)
        return
    made: Any = {
        "ia3": lambda: adapters.add_ia3(lm, target=None),
        "prompt": lambda: adapters.add_prompt(lm, tokens=3, text=[5, 6, 7]),
        "prefix": lambda: adapters.add_prefix(lm, tokens=3, text=None, projection=False, hidden_size=8),
    }[kind]()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(1)) * 0.3)
    made.eval()
    traits = probe(made)
    assert (traits.method == "padded") == (family in PADDED), traits.reason
    tree = Tree.join(
        [([5, 6, 7, 8, *tail], [False] * 4 + [True] * 3) for tail in ([9, 10, 11], [12, 13, 14])]
    )
    with torch.no_grad():
        padded = TreeModel(made, probe(made, wanted="padded"))(lay_out_padded([tree]), Want()).logprobs
        plain = TreeModel(model, probe(model, wanted="padded"))(lay_out_padded([tree]), Want()).logprobs
        found = padded
        if traits.method != "padded":
            found = TreeModel(made, traits)(lay_out_tree([tree]), Want()).logprobs
    torch.testing.assert_close(found, padded, rtol=1e-4, atol=1e-4)
    assert (padded - plain).abs().max() > 1e-3


@pytest.mark.parametrize("vocabulary", [False, True], ids=["layers", "vocabulary"])
def test_lora_on_every_linear_layer_and_merged(
    family: str, model: Any, golden: Golden, tmp_path: Path, vocabulary: bool
) -> None:
    case = next(c for c in cases(golden(family)) if c.name.startswith("seq19"))
    with torch.no_grad():
        before = model(**case.inputs).logits
    adapted: Any = adapter_kinds.add_lora(
        copy.deepcopy(model),
        rank=2,
        alpha=None,
        dropout=0.0,
        target=["all", *(vocabulary_layers(model) if vocabulary else [])],
        bias="none",
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.train()
    checkpoint_activations(adapted)
    adapted(**case.inputs, labels=case.arrays["labels"], use_cache=False).loss.backward()
    grads = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    assert len(grads) >= 8
    assert all(g is not None and g.abs().max() > 0 for g in grads.values())
    adapted.eval()
    with torch.no_grad():
        wanted = adapted(**case.inputs).logits
        assert (wanted - before).abs().max() > 1e-2
        traits = probe(adapted)
        save_model(tmp_path, TreeModel(adapters.merged(adapted), traits), None)
        again = load_lm(str(tmp_path))
        assert (again(**case.inputs).logits - wanted).abs().max() < 5e-5


def test_the_lowest_blocks_freeze(family: str, model: Any, golden: Golden) -> None:
    case = next(c for c in cases(golden(family)) if c.name.startswith("seq7"))
    frozen = freeze_lowest(model, 0.5)
    assert frozen == (len(blocks(model)) + 1) // 2
    assert context_length(model) == 64
    model.train()
    model(**case.inputs, labels=case.arrays["labels"], use_cache=False).loss.backward()
    assert all(p.grad is None for p in blocks(model)[0].parameters())
    assert any(p.grad is not None for p in blocks(model)[-1].parameters())


SCALED = {"rope_type": "linear", "factor": 2.0}
ROTARY = ("aquila", "baichuan_7b", "baichuan2_7b", "chatglm2", "internlm", "xverse")


def test_longer_positions_or_a_refusal_by_name(family: str, golden: Golden, tmp_path: Path) -> None:
    folder = str(golden(family))
    ids = torch.arange(3, 40)[None]
    plain: Any = load_lm(folder).eval()
    with torch.no_grad():
        before = plain(input_ids=ids).logits
    if family in ("pangu", "glm", "chatglm", "qwen", "qwen_v0"):
        grows = "which grows its base by itself"
        said = {"qwen": grows, "qwen_v0": grows, "chatglm": "two channels"}.get(family, "learned positions")
        with pytest.raises(UserError, match=said):
            load_lm(folder, rope_scaling=SCALED)
        return
    scaled: Any = load_lm(folder, rope_scaling=SCALED).eval()
    with torch.no_grad():
        found = scaled(input_ids=ids).logits
    assert (found - before).abs().max() > 1e-4
    assert context_length(scaled) == 2 * original_length(plain.config)
    if family in ROTARY:  # half the angle a place
        rotary = next(m for m in plain.modules() if type(m).__name__.endswith("RotaryEmbedding"))
        if plain.config.rope_parameters["rope_type"] == "default":
            rotary.inv_freq = rotary.inv_freq / 2
            with torch.no_grad():
                torch.testing.assert_close(found, plain(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    scaled.save_pretrained(str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(load_lm(str(tmp_path)).eval()(input_ids=ids).logits, found)
