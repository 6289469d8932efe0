"""Weights and moments go out whole and come back to the last bit; what a strategy is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from espalier.engine import zero
from espalier.engine.checkpoint import load_checkpoint, rng_from_tensors, rng_to_tensors, save_checkpoint
from espalier.engine.optim import OptimizerSettings, optimizer_of
from espalier.engine.strategy import check_offload, clip_gradients, decided, make_accelerator
from espalier.engine.whole import set_moments, set_parameters, whole_moments, whole_parameters
from espalier.errors import UserError


class Net(nn.Module):
    """Tied weights, dropout, a frozen part and one without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.dropout(torch.tanh(self.frozen(self.first(x))), 0.5))


def prepared(seed: int) -> tuple[Accelerator, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    accelerator = make_accelerator("fp32", cpu=True)
    net = Net()
    torch.manual_seed(0)
    net.frozen.reset_parameters()  # what is not trained is not saved: both runs load it
    module, optimizer = accelerator.prepare(net, optimizer_of(net, OptimizerSettings("adamw", 1e-2, 0.1)))
    return accelerator, module, optimizer


def train(accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        accelerator.backward(module(torch.randn(3, 5)).pow(2).mean())
        optimizer.step()
        optimizer.zero_grad()


def test_stop_and_continue_is_no_stop(tmp_path: Path) -> None:
    one = prepared(1)
    train(*one, 3)
    tensors = {
        "model": whole_parameters(*one[:2]),
        "optimizer": whole_moments(*one),
        "rng-0": rng_to_tensors(),
    }
    path = save_checkpoint(tmp_path, 3, tensors, {}, keep=None)
    train(*one, 3)

    two = prepared(2)
    train(*two, 1)
    loaded, _ = load_checkpoint(path)
    set_parameters(*two[:2], loaded["model"])
    set_moments(*two, loaded["optimizer"], 3)
    rng_from_tensors(loaded["rng-0"])
    train(*two, 3)

    truth, found = one[1].state_dict(), two[1].state_dict()
    assert all(torch.equal(truth[name], found[name]) for name in truth)
    assert found["first.weight"].data_ptr() == found["second.weight"].data_ptr()
    moments, again = whole_moments(*one), whole_moments(*two)
    assert moments.keys() == again.keys() and all(torch.equal(moments[k], again[k]) for k in moments)


def test_what_goes_out_is_named_and_a_copy() -> None:
    accelerator, module, optimizer = prepared(1)
    train(accelerator, module, optimizer, 1)
    whole = whole_parameters(accelerator, module)
    assert set(whole) == {"first.weight", "first.bias", "second.bias", "unused"}
    moments = whole_moments(accelerator, module, optimizer)
    trained = set(whole) - {"unused"}
    assert set(moments) == {f"{n}.{k}" for n in trained for k in ("exp_avg", "exp_avg_sq", "step")}
    before = whole["first.weight"].clone()
    train(accelerator, module, optimizer, 1)
    assert torch.equal(whole["first.weight"], before), "a checkpoint that is written later has changed"


def test_clipping_scales_and_tells_the_norm_before() -> None:
    accelerator, module, _ = prepared(1)
    weight = module.get_parameter("first.bias")
    weight.grad = torch.tensor([3.0, 4.0, 0.0, 0.0, 0.0])
    assert clip_gradients(accelerator, module, 0.0) == pytest.approx(5.0)
    assert weight.grad.tolist() == [3.0, 4.0, 0.0, 0.0, 0.0], "0 leaves them alone"
    assert clip_gradients(accelerator, module, 1.0) == pytest.approx(5.0)
    assert weight.grad.norm().item() == pytest.approx(1.0, abs=1e-4)


def test_zero_offloads_what_is_asked() -> None:
    def section(stage: int, offload: str) -> dict[str, object]:
        made = zero.config(stage, "bf16", offload, hidden=64, trained=1000)
        assert made["bf16"]["enabled"] and not made["fp16"]["enabled"]
        found: dict[str, object] = made["zero_optimization"]
        return found

    assert "offload_optimizer" not in section(2, "none")
    assert section(2, "optimizer")["offload_optimizer"] == {"device": "cpu"}
    assert "offload_param" not in section(3, "optimizer")
    three = section(3, "all")
    assert three["offload_param"] == three["offload_optimizer"] == {"device": "cpu"}
    assert three["stage3_param_persistence_threshold"] == 640 and three["reduce_bucket_size"] == 64 * 64
    assert section(1, "none")["reduce_bucket_size"] == 1000, "no buffer is larger than what it is for"


@pytest.mark.parametrize(
    ("strategy", "processes", "stage", "meant"),
    [
        ("auto", 1, None, "single"),
        ("auto", 2, None, "ddp"),
        ("auto", 1, 3, "zero3"),
        ("zero2", 4, 2, "zero2"),
        ("zero3", 1, None, "zero3"),
        ("fsdp", 1, None, "fsdp"),
    ],
)
def test_a_strategy_is_decided_once(strategy: str, processes: int, stage: int | None, meant: str) -> None:
    assert decided(strategy, processes, stage) == meant


@pytest.mark.parametrize(
    ("strategy", "processes", "stage", "cure"),
    [
        ("single", 2, None, "Set strategy: ddp"),
        ("ddp", 1, None, "Set num_processes: 2 or more, or strategy: single"),
        ("zero3", 2, 2, "of stage 2. Remove one"),
    ],
)
def test_a_strategy_that_would_be_another_is_refused(
    strategy: str, processes: int, stage: int | None, cure: str
) -> None:
    with pytest.raises(UserError, match=cure):
        decided(strategy, processes, stage)


@pytest.mark.parametrize(
    ("kind", "offload", "cure"),
    [
        ("ddp", "optimizer", "Set strategy: fsdp, zero2 or zero3"),
        ("single", "all", "Set strategy: fsdp, zero2 or zero3"),
        ("zero2", "all", "Set offload: optimizer, or strategy: zero3"),
        ("fsdp", "optimizer", "Set offload: all, or strategy: zero3"),
    ],
)
def test_an_offload_that_would_move_nothing_is_refused(kind: str, offload: str, cure: str) -> None:
    with pytest.raises(UserError, match=cure):
        check_offload(kind, offload, own=False)
    check_offload("zero3", offload, own=False)
    with pytest.raises(UserError, match="write it into that file"):
        check_offload("zero3", offload, own=True)


def test_a_launcher_does_not_choose_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"asks for DEEPSPEED.*Set strategy in the run's options"):
        make_accelerator("fp32", cpu=True)
