"""LoRA: the reference without it, the merge with it, and wrong targets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from espalier.errors import UserError
from espalier.models.adapters import add_lora, is_adapted, linear_names, load_adapter, merged, reference
from espalier.models.forward import TreeModel, Want
from espalier.models.load import checkpoint_activations
from espalier.models.probe import probe
from espalier.trees import Tree, lay_out_padded, lay_out_tree

Tiny = Callable[..., nn.Module]
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def with_lora(lm: nn.Module, dropout: float = 0.0, bias: str = "none") -> nn.Module:
    """An adapter that has already learned something."""
    made = add_lora(lm, rank=2, alpha=None, dropout=dropout, target=None, bias=bias)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return made


@torch.no_grad()
def logits(lm: nn.Module) -> Tensor:
    return lm(input_ids=IDS).logits


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
def test_reference_is_the_base_model_and_merging_is_the_adapted_one(tiny: Tiny, name: str) -> None:
    base = tiny(name)
    truth = logits(base)
    lm = with_lora(copy.deepcopy(base))
    assert is_adapted(lm)
    assert not is_adapted(base)
    adapted = logits(lm.eval())
    assert (adapted - truth).abs().max() > 0.01
    with reference(lm) as ref:
        assert torch.equal(logits(ref), truth)
    assert torch.equal(logits(lm), adapted), "the adapter is on again"
    plain = merged(lm)
    assert not is_adapted(plain)
    torch.testing.assert_close(logits(plain), adapted, rtol=1e-4, atol=1e-5)


def test_a_reference_has_no_dropout_no_gradients_and_leaves_the_mode(tiny: Tiny) -> None:
    base = tiny("llama")
    lm = with_lora(copy.deepcopy(base), dropout=0.5).train()
    with reference(lm) as ref:
        out = ref(input_ids=IDS).logits
        assert not out.requires_grad
        assert torch.equal(out, logits(base))
    assert lm.training
    with pytest.raises(KeyError), reference(lm):
        raise KeyError
    assert lm.training
    assert (logits(lm.eval()) - logits(base)).abs().max() > 0.01


def test_a_new_adapter_changes_nothing_and_trains_itself_alone(tiny: Tiny) -> None:
    base = tiny("gpt2")
    lm = add_lora(copy.deepcopy(base), rank=2, alpha=None, dropout=0.0, target=None, bias="none")
    assert torch.equal(logits(lm.eval()), logits(base))
    assert all(("lora_" in name) == p.requires_grad for name, p in lm.named_parameters())


def test_an_adapted_model_takes_trees(tiny: Tiny, trees: list[Tree]) -> None:
    lm = with_lora(tiny("llama")).eval()
    traits = probe(lm)
    assert traits.method == "pieces"
    tree = TreeModel(lm, traits)(lay_out_tree(trees), Want()).logprobs
    padded = TreeModel(lm, traits)(lay_out_padded(trees), Want()).logprobs
    torch.testing.assert_close(tree, padded, rtol=1e-5, atol=1e-5)


def test_checkpointed_activations_give_the_adapter_the_same_gradients(tiny: Tiny, trees: list[Tree]) -> None:
    lm = with_lora(tiny("llama")).train()
    model = TreeModel(lm, probe(lm))
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint_activations(lm)
        lm.zero_grad()
        model(lay_out_tree(trees), Want()).logprobs.sum().backward()
        found.append([p.grad.clone() for p in lm.parameters() if p.requires_grad])
    assert all(grad.any() for grad in found[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_targets_are_the_layers_of_the_blocks(tiny: Tiny) -> None:
    assert linear_names(tiny("llama")) == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert linear_names(tiny("gpt2")) == ["c_attn", "c_fc", "c_proj"]
    for target in (None, ["all"]):
        lm = add_lora(tiny("llama"), rank=1, alpha=8, dropout=0.0, target=target, bias="none")
        settings = lm.peft_config["default"]
        assert set(settings.target_modules) == set(linear_names(tiny("llama")))
        assert settings.lora_alpha == 8
    lm = add_lora(tiny("llama"), rank=3, alpha=None, dropout=0.0, target=["q_proj"], bias="none")
    assert lm.peft_config["default"].lora_alpha == 6
    assert all("q_proj" in name for name, p in lm.named_parameters() if p.requires_grad)


def test_a_wrong_target_is_an_error_that_lists_what_exists(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="query_key_value") as caught:
        add_lora(
            tiny("llama"), rank=2, alpha=None, dropout=0.0, target=["q_proj", "query_key_value"], bias="none"
        )
    for name in ("q_proj", "down_proj", "lora_target"):
        assert name in str(caught.value)


def test_an_adapter_folder_is_read_back_and_another_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("llama")
    lm = with_lora(copy.deepcopy(base)).eval()
    lm.save_pretrained(str(tmp_path / "adapter"))  # type: ignore[operator]
    for trainable in (True, False):
        again = load_adapter(copy.deepcopy(base), str(tmp_path / "adapter"), trainable=trainable)
        assert any(p.requires_grad for p in again.parameters()) is trainable
        torch.testing.assert_close(logits(again.eval()), logits(lm))
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        load_adapter(base, str(tmp_path), trainable=False)
