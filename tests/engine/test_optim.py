"""The rate against its formulas at every step, and which parameters decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from espalier.engine.optim import adamw, learning_rate_at


def rates(kind: str, warmup: int, total: int) -> list[float]:
    return [
        learning_rate_at(step, peak=2.0, kind=kind, warmup_steps=warmup, total_steps=total)
        for step in range(total)
    ]


def test_a_linear_rise_then_a_linear_fall_that_would_reach_0_at_the_end() -> None:
    assert rates("linear", 4, 12) == pytest.approx(
        [0.5, 1.0, 1.5, 2.0, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25]
    )


def test_a_cosine_is_half_way_down_in_the_middle() -> None:
    found = rates("cosine", 0, 8)
    assert found[0] == 2.0 and found[4] == pytest.approx(1.0)
    assert found == pytest.approx([1 + math.cos(math.pi * i / 8) for i in range(8)])
    assert learning_rate_at(99, peak=2.0, kind="cosine", warmup_steps=0, total_steps=8) == pytest.approx(0)


@pytest.mark.parametrize("kind", ["constant", "constant_with_warmup"])
def test_a_constant_stays(kind: str) -> None:
    assert rates(kind, 2, 5) == [1.0, 2.0, 2.0, 2.0, 2.0]


def test_the_rate_of_a_step_does_not_depend_on_the_steps_before_it() -> None:
    once = learning_rate_at(7, peak=2.0, kind="cosine", warmup_steps=2, total_steps=10)
    assert once == rates("cosine", 2, 10)[7]


def test_an_unknown_kind_names_the_known() -> None:
    with pytest.raises(ValueError, match="unknown lr_scheduler_type cubic; known: linear, cosine"):
        rates("cubic", 0, 1)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3).requires_grad_(False))
    optimizer = adamw(model, learning_rate=0.1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = (
            0.95 if name == "0.weight" else 1.0
        )  # without a gradient only the decay is left: 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), factor * before[name])


def test_nothing_to_train_is_said() -> None:
    with pytest.raises(ValueError, match="no parameter is trainable: check finetuning_type and freeze_ratio"):
        adamw(nn.Linear(2, 2).requires_grad_(False), learning_rate=0.1, weight_decay=0.0)
