"""Who earns the tree layout, who does not, and what the run is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from espalier.models.probe import probe, sliding_windows

Tiny = Callable[..., nn.Module]


@pytest.mark.parametrize("name", ["bloom", "mpt", "falcon-alibi"])
def test_alibi_falls_back_to_padded_with_one_clear_line(tiny: Tiny, name: str) -> None:
    lm = tiny(name)
    own = lm.config._attn_implementation
    traits = probe(lm)
    assert traits.method == "padded"
    assert "\n" not in traits.reason
    assert traits.reason.startswith("padded layout: ")
    assert lm.config.model_type in traits.reason
    assert lm.config._attn_implementation == own, "the model is left as it was found"


def test_a_tree_demanded_of_bloom_is_an_error_with_the_remedy(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="bloom") as caught:
        probe(tiny("bloom"), wanted="tree")
    assert "layout: auto or padded" in str(caught.value)


def test_padded_as_asked(tiny: Tiny) -> None:
    traits = probe(tiny("llama"), wanted="padded")
    assert (traits.method, traits.plain_head) == ("padded", True)


@pytest.mark.parametrize(
    ("name", "plain"), [("llama", True), ("gpt2", True), ("opt", True), ("gemma2", False), ("cohere", False)]
)
def test_a_cap_or_a_scale_after_the_head_is_noticed(tiny: Tiny, name: str, plain: bool) -> None:
    assert probe(tiny(name)).plain_head is plain


def _forget_the_mask(lm: Any) -> None:
    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 4:
            size = mask.shape[-1]
            kwargs["attention_mask"] = torch.full((1, 1, size, size), -1e9).triu(1)
        return args, kwargs

    for block in lm.model.layers:
        block.self_attn.register_forward_pre_hook(hook, with_kwargs=True)


def _forget_the_positions(lm: Any) -> None:
    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "position_ids": None}

    lm.model.register_forward_pre_hook(hook, with_kwargs=True)


@pytest.mark.parametrize("plant", [_forget_the_mask, _forget_the_positions])
def test_a_model_that_is_wrong_under_trees_is_refused(tiny: Tiny, plant: Callable[[Any], None]) -> None:
    lm = tiny("llama")
    plant(lm)
    traits = probe(lm)
    assert traits.method == "padded"
    assert "off by" in traits.reason


def test_a_window_that_is_forgotten_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("mistral")
    assert probe(lm).method != "padded"
    truth = sliding_windows(lm.config)
    from espalier.models import probe as module

    found = iter([{"": None}])
    monkeypatch.setattr(module, "sliding_windows", lambda config: next(found, truth))
    assert probe(lm).method == "padded"


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_found(tiny: Tiny, training: bool) -> None:
    lm = tiny("llama").train(training)
    probe(lm)
    assert lm.training is training


@pytest.mark.parametrize(
    ("name", "settings", "windows"),
    [
        ("llama", {}, {"": None}),
        ("mistral", {}, {"": 8}),
        ("mistral", {"sliding_window": None}, {"": None}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, {"": None}),
        ("gemma2", {}, {"full_attention": None, "sliding_attention": 8}),
    ],
)
def test_sliding_windows(tiny: Tiny, name: str, settings: dict[str, Any], windows: dict[str, Any]) -> None:
    assert sliding_windows(tiny(name, **settings).config) == windows
