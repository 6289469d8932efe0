"""Ranges of sampling settings."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.errors import UserError
from espalier.serve.settings import AnswerSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 5e-324), ("top_p", 5), ("top_k", -1), ("top_k", 1.5),
        ("min_p", 1.1), ("repetition_penalty", 0), ("presence_penalty", 3), ("n", 0), ("max_new_tokens", 0),
        ("max_new_tokens", True), ("logprobs", 21), ("seed", 2**64), ("temperature", "hot"), ("temperature", 5e-324), ("repetition_penalty", 1e-9), ("seed", 1.0),
    ],
)  # fmt: skip
def test_a_value_out_of_its_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name} .*wanted a "):
        AnswerSettings(**{name: value})


def test_values_at_the_edge_of_their_range_are_taken() -> None:
    AnswerSettings(temperature=0, top_p=1, top_k=0, min_p=1, n=1, max_new_tokens=1, logprobs=0, seed=0)
    AnswerSettings(temperature=2, top_p=1e-6, repetition_penalty=0.5, seed=None, logprobs=None)


def test_empty_stop_texts_and_wild_biases_are_refused() -> None:
    with pytest.raises(UserError, match="stop"):
        AnswerSettings(stop=("a", ""))
    with pytest.raises(UserError, match="logit_bias"):
        AnswerSettings(logit_bias={3: 101.0})
