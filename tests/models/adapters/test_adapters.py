"""Adapters of every kind: their start, saving, merging; and LoRA's targets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from espalier.errors import UserError
from espalier.models.adapters.adapter import (
    StepZero,
    can_merge,
    is_adapted,
    linear_names,
    load_adapter,
    merged,
    save_adapter,
)
from espalier.models.adapters.kinds import (
    LoraVariant,
    add_adalora,
    add_ia3,
    add_lora,
    add_p_tuning,
    add_prefix,
    add_prompt,
)
from espalier.models.adapters.targets import vocabulary_layers
from espalier.models.forward import TreeModel, Want
from espalier.models.load import checkpoint_activations, load_lm
from espalier.models.load_adapted import load_with_adapter, with_adapters
from espalier.models.probe import probe
from espalier.models.saved import save_model
from espalier.trees import Tree, lay_out_padded, lay_out_tree

Tiny = Callable[..., nn.Module]
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def with_lora(lm: nn.Module, dropout: float = 0.0, bias: str = "none") -> nn.Module:
    """An adapter that has already learned something."""
    return learned(add_lora(lm, rank=2, alpha=None, dropout=dropout, target=None, bias=bias))


def learned(lm: nn.Module) -> nn.Module:
    """Every trained weight moved, as a few steps would."""
    maker = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=maker) * 0.2)
    return lm


MAKERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "lora": lambda lm: add_lora(lm, rank=2, alpha=None, dropout=0.0, target=None, bias="none"),
    "rslora": lambda lm: add_lora(
        lm, rank=4, alpha=8, dropout=0.0, target=["auto"], bias="none", variant=LoraVariant(rslora=True)
    ),
    "dora": lambda lm: add_lora(
        lm, rank=2, alpha=None, dropout=0.0, target=None, bias="none", variant=LoraVariant(dora=True)
    ),
    "pissa": lambda lm: add_lora(
        lm, rank=2, alpha=None, dropout=0.0, target=None, bias="none", variant=LoraVariant(pissa=-1)
    ),
    "pissa_fast": lambda lm: add_lora(
        lm,
        rank=4,
        alpha=4,
        dropout=0.0,
        target=["auto"],
        bias="none",
        variant=LoraVariant(rslora=True, pissa=4),
    ),
    "vocabulary": lambda lm: add_lora(
        lm, rank=3, alpha=None, dropout=0.0, target=["all", *vocabulary_layers(lm)], bias="none"
    ),
    "embeddings": lambda lm: add_lora(
        lm, rank=3, alpha=None, dropout=0.0, target=vocabulary_layers(lm)[:1], bias="none"
    ),
    "bias": lambda lm: add_lora(lm, rank=2, alpha=None, dropout=0.0, target=None, bias="all"),
    "adalora": lambda lm: add_adalora(
        lm, first_rank=4, rank=2, alpha=None, dropout=0.0, target=None, beta=0.85, orthogonality=0.5
    ),
    "ia3": lambda lm: add_ia3(lm, target=None),
    "prompt": lambda lm: add_prompt(lm, tokens=3, text=None),
    "p_tuning": lambda lm: add_p_tuning(lm, tokens=3, hidden_size=16),
    "prefix": lambda lm: add_prefix(lm, tokens=3, text=None, projection=False, hidden_size=16),
    "projected": lambda lm: add_prefix(lm, tokens=3, text=None, projection=True, hidden_size=16),
}
"""Every kind of adapter, and its variants."""

MERGEABLE = (
    "lora",
    "rslora",
    "dora",
    "pissa",
    "pissa_fast",
    "vocabulary",
    "embeddings",
    "bias",
    "adalora",
    "ia3",
)


@torch.no_grad()
def logits(lm: nn.Module) -> Tensor:
    return lm(input_ids=IDS).logits


def answers(lm: nn.Module, forest: list[Tree]) -> Tensor:
    """Logprobs through our forward, padded: what every kind of adapter is compared by."""
    with torch.no_grad():
        found = TreeModel(lm, probe(lm, wanted="padded"))(lay_out_padded(forest), Want()).logprobs
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_start_is_remembered_while_the_adapter_learns(
    tiny: Tiny, trees: list[Tree], kind: str, name: str
) -> None:
    base = tiny(name)
    lm = MAKERS[kind](copy.deepcopy(base)).train()
    assert is_adapted(lm) and not is_adapted(base)
    first = answers(lm.eval(), trees)
    start = StepZero(lm.train())
    assert start.switched_off == (
        kind in ("lora", "rslora", "dora", "vocabulary", "embeddings", "adalora", "ia3")
    )
    if start.switched_off:
        torch.testing.assert_close(first, answers(base, trees), rtol=1e-4, atol=1e-5)
    learned(lm)
    now = answers(lm.eval(), trees)
    assert (now - first).abs().max() > 1e-3
    lm.train()
    with start() as ref:
        torch.testing.assert_close(answers(ref, trees), first, rtol=1e-4, atol=1e-5)
    assert lm.training
    assert torch.equal(answers(lm.eval(), trees), now), "the adapter is as it was before the question"


@pytest.mark.parametrize("kind", MAKERS)
def test_an_adapter_that_goes_on_has_itself_as_its_start(
    tiny: Tiny, trees: list[Tree], kind: str, tmp_path: Path
) -> None:
    base = tiny("llama")
    old = learned(MAKERS[kind](copy.deepcopy(base))).eval()
    truth = answers(old, trees)
    save_adapter(old, tmp_path / "old", old.state_dict(), embeddings=False)
    lm = load_adapter(copy.deepcopy(base), str(tmp_path / "old"), trainable=True)
    assert any(p.requires_grad for p in lm.parameters())
    start = StepZero(lm)
    assert not start.switched_off
    assert (answers(learned(lm).eval(), trees) - truth).abs().max() > 1e-3
    with start() as ref:
        torch.testing.assert_close(answers(ref, trees), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_saved_adapter_says_the_same_again(
    tiny: Tiny, trees: list[Tree], kind: str, tmp_path: Path
) -> None:
    base = tiny("llama")
    lm = learned(MAKERS[kind](copy.deepcopy(base))).eval()
    truth = answers(lm, trees)
    (tmp_path / "saved").mkdir()
    save_model(tmp_path / "saved", TreeModel(lm, probe(lm)), None)
    for trainable in (False, True):
        again = load_adapter(copy.deepcopy(base), str(tmp_path / "saved"), trainable=trainable)
        torch.testing.assert_close(answers(again.eval(), trees), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_merged_adapter_says_the_same_or_is_refused(tiny: Tiny, kind: str, name: str) -> None:
    lm = learned(MAKERS[kind](tiny(name))).eval()
    assert can_merge(lm) == (kind in MERGEABLE)
    if kind not in MERGEABLE:
        with pytest.raises(UserError, match=r"cannot be merged.*as it is"):
            merged(lm)
        return
    truth = logits(lm)
    plain = merged(lm)
    assert not is_adapted(plain)
    torch.testing.assert_close(logits(plain), truth, rtol=1e-3, atol=1e-4)


def test_the_start_has_no_dropout_no_gradients_and_leaves_the_mode(tiny: Tiny) -> None:
    base = tiny("llama")
    lm = add_lora(copy.deepcopy(base), rank=2, alpha=None, dropout=0.5, target=None, bias="none").train()
    start = StepZero(lm)
    learned(lm)
    with start() as ref:
        out = ref(input_ids=IDS).logits
        assert not out.requires_grad
        assert torch.equal(out, logits(base))
    assert lm.training
    with pytest.raises(KeyError), start():
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
    with pytest.raises(UserError, match="W_in") as caught:
        add_lora(tiny("llama"), rank=2, alpha=None, dropout=0.0, target=["q_proj", "W_in"], bias="none")
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


def targets(lm: nn.Module, wanted: list[str]) -> list[str]:
    made = add_lora(lm, rank=1, alpha=None, dropout=0.0, target=wanted, bias="none")
    found = [n for n, m in made.named_modules() if hasattr(m, "lora_A")]
    return [n.removeprefix("base_model.model.") for n in found]


def test_targets_are_names_paths_or_patterns(tiny: Tiny) -> None:
    assert targets(tiny("llama"), ["layers.0.self_attn.q_proj"]) == ["model.layers.0.self_attn.q_proj"]
    assert targets(tiny("llama"), [r".*layers\.1\.(self_attn\.k|mlp\.up)_proj"]) == [
        "model.layers.1.self_attn.k_proj",
        "model.layers.1.mlp.up_proj",
    ]
    with pytest.raises(UserError, match=r"\*bad is no|\*bad matches no.*no regular expression"):
        targets(tiny("llama"), ["*bad"])
    # a projection that a conversion has cut in three
    cut = targets(tiny("llama"), ["W_pack"])
    assert {n.rsplit(".", 1)[-1] for n in cut} == {"q_proj", "k_proj", "v_proj"}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("llama", {"q_proj", "v_proj"}),
        ("gpt2", {"c_attn"}),
        ("bloom", {"query_key_value"}),
        ("falcon", {"query_key_value"}),
        ("codegen", {"qkv_proj"}),
        ("mpt", {"Wqkv"}),
        ("opt", {"q_proj", "v_proj"}),
    ],
)
def test_auto_is_the_familys_queries_and_values(tiny: Tiny, name: str, wanted: set[str]) -> None:
    assert {n.rsplit(".", 1)[-1] for n in targets(tiny(name), ["auto"])} == wanted


def test_ia3_scales_keys_values_and_inner_activations(tiny: Tiny) -> None:
    for name, outer, inner in (
        ("llama", {"k_proj", "v_proj"}, {"down_proj"}),
        ("gpt2", {"c_attn"}, {"mlp.c_proj"}),
        ("opt", {"k_proj", "v_proj"}, {"fc2"}),
        ("bloom", {"query_key_value"}, {"dense_4h_to_h"}),
    ):
        settings = add_ia3(tiny(name), target=None).peft_config["default"]
        assert all(any(t.endswith(x) for x in outer | inner) for t in settings.target_modules)
        assert all(any(t.endswith(x) for x in inner) for t in settings.feedforward_modules)
        assert len(settings.target_modules) == 2 * (len(outer) + len(inner))


@pytest.mark.slow
def test_a_grown_vocabulary_travels_with_the_adapter(tiny: Tiny, tmp_path: Path) -> None:
    for kind in ("lora", "ia3", "prompt", "prefix"):
        folder = tmp_path / kind
        base = tiny("llama")
        base.save_pretrained(str(folder / "base"))  # type: ignore[operator]
        lm = load_lm(str(folder / "base"))
        lm.resize_token_embeddings(120)  # type: ignore[operator]
        lm = learned(MAKERS[kind](lm)).eval()
        (folder / "adapter").mkdir()
        save_model(folder / "adapter", TreeModel(lm, probe(lm)), None)
        again = load_with_adapter(str(folder / "adapter")).eval()
        ids = torch.tensor([[5, 110, 119, 7]])
        with torch.no_grad():
            torch.testing.assert_close(
                again(input_ids=ids).logits, lm(input_ids=ids).logits, rtol=1e-4, atol=1e-4
            )


def test_an_adapter_on_a_merged_one_finds_its_way_down(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("llama")
    base.save_pretrained(str(tmp_path / "base"))  # type: ignore[operator]
    below, truth = str(tmp_path / "base"), None
    for i, kind in enumerate(("lora", "ia3", "adalora", "prompt")):
        lm = learned(MAKERS[kind](load_with_adapter(below))).eval()
        below = str(tmp_path / f"adapter-{i}")
        Path(below).mkdir()
        save_model(Path(below), TreeModel(lm, probe(lm)), None)
        truth = logits(lm)
    assert truth is not None
    torch.testing.assert_close(logits(load_with_adapter(below).eval()), truth, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="prompt cannot be merged"):
        with_adapters(load_with_adapter(below), [str(tmp_path / "adapter-0")])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["pissa", "pissa_fast"])
def test_pissa_begins_as_its_base_and_learns_in_the_largest_directions(
    tiny: Tiny, kind: str, name: str, tmp_path: Path
) -> None:
    base = tiny(name)
    truth = logits(base)
    lm = MAKERS[kind](copy.deepcopy(base)).eval()
    torch.testing.assert_close(logits(lm), truth, rtol=1e-4, atol=1e-5)
    with lm.disable_adapter():  # type: ignore[operator]
        assert (logits(lm) - truth).abs().max() > 0.05, "what is frozen is the rest of the weights"
    weights = {k: m for k, m in lm.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)}
    for layer in weights.values():
        rank, rest = layer.r["default"], layer.get_base_layer().weight
        whole = rest + layer.get_delta_weight("default")
        expected = torch.linalg.svdvals(whole)[rank]
        exact = kind == "pissa"
        torch.testing.assert_close(
            torch.linalg.svdvals(rest)[0], expected, rtol=1e-3 if exact else 0.2, atol=1e-4
        )
    save_adapter(learned(lm), tmp_path, lm.state_dict(), embeddings=False)
    by_peft = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    assert by_peft.active_peft_config.r == 2 * rank
    assert (logits(lm) - truth).abs().max() > 0.05
    torch.testing.assert_close(logits(by_peft), logits(lm), rtol=1e-4, atol=1e-4)


def test_new_tokens_of_embeddings_with_lora_are_learned_by_it(tiny: Tiny) -> None:
    variant = LoraVariant(new_tokens=[97, 98])
    for target, rows in ((["all", "embed_tokens"], {"lm_head"}), (["all"], {"embed_tokens", "lm_head"})):
        lm = add_lora(
            tiny("llama"), rank=2, alpha=4, dropout=0.0, target=target, bias="none", variant=variant
        )
        assert set(lm.active_peft_config.trainable_token_indices) == rows  # type: ignore[union-attr,arg-type]
