"""The rate against its formulas at every step, which parameters decay, and each optimiser against its paper's step."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

from espalier.config.train_options import SCHEDULES
from espalier.engine.optim import OptimizerSettings, learning_rates, optimizer_of
from espalier.errors import UserError


def rates(kind: str, warmup: int, total: int, **settings: Any) -> list[float]:
    rate = learning_rates(kind, 2.0, warmup, total, settings)
    return [rate(step) for step in range(total)]


def test_a_linear_rise_then_a_linear_fall_that_would_reach_0_at_the_end() -> None:
    assert rates("linear", 4, 12) == pytest.approx(
        [0.5, 1.0, 1.5, 2.0, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25]
    )


def test_a_cosine_is_half_way_down_in_the_middle() -> None:
    found = rates("cosine", 0, 8)
    assert found[0] == 2.0 and found[4] == pytest.approx(1.0)
    assert found == pytest.approx([1 + math.cos(math.pi * i / 8) for i in range(8)])
    assert learning_rates("cosine", 2.0, 0, 8, {})(99) == pytest.approx(0)


@pytest.mark.parametrize("kind", ["constant", "constant_with_warmup"])
def test_a_constant_stays(kind: str) -> None:
    assert rates(kind, 2, 5) == [1.0, 2.0, 2.0, 2.0, 2.0]


def test_the_other_schedules_follow_their_formulas() -> None:
    assert rates("cosine_with_min_lr", 0, 8, min_lr_rate=0.25) == pytest.approx(
        [2 * (0.75 * (1 + math.cos(math.pi * i / 8)) / 2 + 0.25) for i in range(8)]
    )
    assert rates("cosine_with_min_lr", 0, 8, min_lr=0.5) == rates(
        "cosine_with_min_lr", 0, 8, min_lr_rate=0.25
    )
    assert rates("polynomial", 0, 4, power=2.0, lr_end=0.0) == pytest.approx(
        [2 * (1 - i / 4) ** 2 for i in range(4)]
    )
    assert rates("cosine_with_restarts", 0, 8, num_cycles=2)[4] == 2.0 == rates("cosine", 0, 8)[0]
    falling = rates("warmup_stable_decay", 2, 20, num_decay_steps=8, decay_type="linear")
    assert falling[:12] == [1.0, *[2.0] * 11] and falling[12:] == pytest.approx([2 - i / 4 for i in range(8)])
    assert rates("warmup_stable_decay", 2, 20)[:18] == [1.0, *[2.0] * 17], "a tenth of all steps"
    assert rates("inverse_sqrt", 4, 8)[4:] == pytest.approx([2 * math.sqrt(4 / (4 + i)) for i in range(4)])


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("warmup_stable_decay", {"num_decay_steps": 19}, "with 2 steps of warmup they do not fit into 20"),
        ("warmup_stable_decay", {"decay_type": "up"}, "cannot use .*'up'"),
        ("cosine", {"num_cycles": "x"}, "cannot use {'num_cycles': 'x'}"),
        ("polynomial", {"lr_end": 5.0}, "lr_end"),
    ],
)
def test_what_a_schedule_cannot_use_is_one_message(kind: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rates(kind, 2, 20, **settings)
    assert rates("cosine", 30, 20)[-1] == pytest.approx(2.0 * 20 / 30), "a short try of a long run"


def test_what_a_schedule_takes_is_what_transformers_has() -> None:
    own = {
        "optimizer",
        "num_warmup_steps",
        "num_training_steps",
        "last_epoch",
        "num_stable_steps",
        "warmup_type",
    }
    for name, takes in SCHEDULES.items():
        signature = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)])
        assert set(signature.parameters) - own == set(takes), name


def test_the_rate_of_a_step_does_not_depend_on_the_steps_before_it() -> None:
    rate = learning_rates("cosine", 2.0, 2, 10, {})
    assert rate(7) == rates("cosine", 2, 10)[7]
    assert learning_rates("polynomial", 0.0, 0, 4, {})(2) == 0.0


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "adafactor", "sgd"])
def test_matrices_decay_and_vectors_do_not(kind: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3).requires_grad_(False))
    optimizer = optimizer_of(model, OptimizerSettings(kind, 0.1, 0.5))
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
        optimizer_of(nn.Linear(2, 2).requires_grad_(False), OptimizerSettings("adamw", 0.1))


def stepped(kind: str, steps: int = 1, **settings: Any) -> tuple[nn.Linear, torch.Tensor, Any]:
    """A matrix after so many steps along one gradient; with where it was, and its optimiser."""
    torch.manual_seed(0)
    layer = nn.Linear(96, 64, bias=False)
    before, gradient = layer.weight.detach().clone(), torch.randn(64, 96)
    optimizer = optimizer_of(layer, OptimizerSettings(kind, 0.1, **settings))
    for _ in range(steps):
        layer.weight.grad = gradient.clone()
        optimizer.step()
    return layer, before, optimizer


def test_each_optimiser_takes_its_own_step() -> None:
    torch.manual_seed(0)
    moved = {}
    for kind in ("adamw", "adamw_8bit", "adafactor", "sgd"):
        layer, before, optimizer = stepped(kind)
        moved[kind] = (layer.weight.detach() - before, layer.weight.grad, optimizer)
    step, gradient, _ = moved["sgd"]
    torch.testing.assert_close(step, -0.1 * gradient)
    torch.testing.assert_close(moved["adamw"][0], -0.1 * gradient.sign(), atol=1e-4, rtol=0)
    eight, _, optimizer = moved["adamw_8bit"]
    (state,) = optimizer.state.values()
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    assert float((eight - moved["adamw"][0]).abs().max()) < 1e-3 < float(eight.abs().max())
    squares = gradient**2  # Shazeer & Stern 2018, algorithm 4: a row and a column stand for the matrix
    mean = squares.mean(1, keepdim=True) * squares.mean(0, keepdim=True) / squares.mean()
    update = gradient / mean.sqrt()
    update /= max(1.0, float(update.square().mean().sqrt()))
    torch.testing.assert_close(moved["adafactor"][0], -0.1 * update, atol=1e-4, rtol=1e-3)


def test_lora_b_learns_faster_where_it_is_asked_for() -> None:
    model = nn.ModuleDict({"lora_A": nn.Linear(3, 3), "lora_B": nn.Linear(3, 3)})
    by_scale = {
        group["lr_scale"]: group["params"]
        for group in optimizer_of(model, OptimizerSettings("adamw", 0.1, loraplus_ratio=16.0)).param_groups
        if group["params"][0].dim() == 2
    }
    assert by_scale[1.0][0] is model["lora_A"].weight and by_scale[16.0][0] is model["lora_B"].weight
    assert {g["lr_scale"] for g in optimizer_of(model, OptimizerSettings("adamw", 0.1)).param_groups} == {1.0}
