"""Frozen models that are away between questions: the same numbers, and nothing is asked of one that is away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espalier.models import offload
from espalier.models.offload import park, resident
from espalier.stages import model_memory
from espalier.stages.model_memory import park_frozen
from espalier.stages.objectives import grpo, ppo
from tests.stages.conftest import far, run, weights

Make = Callable[..., dict[str, Any]]
THERE = torch.device("cpu", 0)
"""Stands for a GPU: another device by name."""


class Away:
    """Weights that are parked here are gone until they are fetched, so that a forget shows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: dict[int, Tensor] = {}
        self.fetched = 0
        monkeypatch.setattr(offload, "_move", self.move)

    def move(self, tensors: list[Tensor], device: torch.device) -> None:
        for tensor in tensors:
            if device == THERE:
                tensor.data = self.kept.pop(id(tensor))
                self.fetched += 1
            else:
                self.kept[id(tensor)] = tensor.data
                tensor.data = torch.empty(0, dtype=tensor.dtype)


def test_what_another_module_holds_too_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(monkeypatch)
    shared, own = nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)
    frozen = nn.Sequential(shared, own).requires_grad_(False)
    x = torch.randn(2, 4)
    expected = frozen(x)
    assert park(frozen, [shared], THERE) == 12 * 4
    assert own.weight.numel() == 0 and shared.weight.numel() == 16
    with pytest.raises(RuntimeError):
        frozen(x)
    for _ in range(2):
        with resident(frozen, None, shared):
            assert torch.equal(frozen(x), expected)
        assert own.weight.numel() == 0
    assert away.fetched == 2
    with pytest.raises(KeyError), resident(frozen):
        raise KeyError
    assert own.weight.numel() == 0, "an error puts them back too"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_the_same_steps(stage: str, options: Make, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"teacher_model": str(world / "base")} if stage == "grpo" else {}
    plain = options(stage, name="plain", **more)
    run(plain)
    away = Away(monkeypatch)

    def parked(setup: Any, trained: nn.Module, **others: nn.Module | None) -> None:
        assert {name.split()[0] for name, model in others.items() if model is not None} == (
            {"reference", "reward"} if stage == "ppo" else {"reference", "teacher"}
        )
        monkeypatch.setattr(setup, "device", THERE)
        monkeypatch.setattr(model_memory, "_on_cpu", lambda device: False)
        park_frozen(setup, trained, **others)
        monkeypatch.setattr(setup, "device", torch.device("cpu"))

    module = ppo if stage == "ppo" else grpo
    monkeypatch.setattr(module, "park_frozen", parked)
    other = options(stage, name="parked", frozen_offload=True, **more)
    run(other)
    assert away.fetched > 20 and away.kept, "fetched, and away again at the end"
    assert far(weights(plain), weights(other)) == 0.0


def test_a_cpu_is_told_that_nothing_moves(options: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run(options("ppo", max_steps=1, eval_steps=0, frozen_offload=True))
    assert "frozen_offload: this run computes on the CPU" in capsys.readouterr().err
