"""A model_config that contradicts itself is one message with its keys, whatever the architecture."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from torch import nn

from espalier.errors import Notice, UserError
from espalier.models.load import new_lm

IDS: dict[str, int | None] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 64}


def made(kind: str, **settings: Any) -> nn.Module:
    return new_lm({"model_type": kind, **settings}, 99, IDS)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral", "gemma2"])
def test_a_default_follows_what_was_given_and_says_so(kind: str) -> None:
    with pytest.warns(Notice, match=r"num_key_value_heads is 2, as num_attention_heads says; the default of"):
        lm = made(kind, **SIZES, num_attention_heads=2)
    assert lm.config.num_key_value_heads == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", SIZES | {"num_attention_heads": 2}),  # follows by itself
        ("phi3", SIZES | {"num_attention_heads": 2}),
        ("cohere", SIZES | {"num_attention_heads": 2}),
        ("qwen2", SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2}),
        (
            "t5",
            {"d_model": 32, "d_kv": 10, "d_ff": 32, "num_layers": 1, "num_heads": 3},
        ),  # any width of a head
        ("bart", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}),
    ],
)
def test_sizes_that_agree_are_taken_as_they_are(kind: str, settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        lm = made(kind, **settings)
    for key, value in settings.items():
        assert getattr(lm.config, key) == value


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    (
        "llama",
        SIZES | {"num_attention_heads": 2, "num_key_value_heads": 3},
        r"attention_heads \(2\).*value_heads \(3\)",
    ),
    (
        "llama",
        SIZES | {"num_key_value_heads": 3},
        r"attention_heads \(32, by default\).*num_key_value_heads \(3\)",
    ),
    ("llama", SIZES | {"num_attention_heads": 3}, r"hidden size \(32\).*num_attention_heads 3"),
    ("llama", SIZES | {"num_attention_heads": 2, "head_dim": 7}, r"head_dim.*Given: .*head_dim 7"),
    ("llama", SIZES | {"num_attention_heads": 0}, "num_attention_heads is 0. Wanted"),
    ("llama", SIZES | {"hidden_size": -4}, "hidden_size is -4. Wanted"),
    ("llama", SIZES | {"num_attention_heads": "two"}, "num_attention_heads two"),
    ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 3}, r"n_embd \(32\) is not divisible by n_head \(3\)"),
    ("gpt2", {"hidden_size": 32, "num_attention_heads": 3}, r"hidden_size \(32\).*num_attention_heads \(3\)"),
    ("gpt2", {"n_embd": 32, "n_head": 5}, r"n_embd \(32\) is not divisible by n_head \(5\)"),
    ("gpt2", {"n_embd": 31, "n_layer": 1}, r"n_embd \(31\) is not divisible by n_head \(12, by default\)"),
    ("bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 3}, r"hidden_size \(32\).*n_head \(3\)"),
    ("mpt", {"d_model": 32, "n_layers": 1, "n_heads": 3}, r"d_model \(32\).*n_heads \(3\)"),
    ("falcon", SIZES | {"num_attention_heads": 3}, r"hidden_size \(32\).*num_attention_heads \(3\)"),
    ("opt", SIZES | {"num_attention_heads": 3}, r"hidden_size \(32\).*num_attention_heads \(3\)"),
    ("gpt_neox", SIZES | {"num_attention_heads": 3}, r"hidden_size \(32\).*num_attention_heads \(3\)"),
    ("codegen", {"n_embd": 32, "n_layer": 1, "n_head": 2}, r"no codegen can compute .*n_embd 32, .*n_head 2"),
    ("bart", {"d_model": 32, "encoder_attention_heads": 3}, r"d_model \(32\).*encoder_attention_heads \(3\)"),
]


@pytest.mark.filterwarnings("ignore::espalier.errors.Notice")
@pytest.mark.parametrize(("kind", "settings", "said"), CONTRADICTIONS)
def test_a_contradiction_names_its_keys(kind: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"^model_config: .*{said}"):
        made(kind, **settings)
