"""What is counted is what is there, and a run that is not what was asked for ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from espalier.engine import shares
from espalier.engine.fsdp import blocks
from espalier.engine.shares import Shares, held_bytes, whole_of
from espalier.engine.strategy import Wanted, make_accelerator, prepare
from espalier.errors import UserError


class Net(nn.Module):
    """Two blocks, tied embeddings outside of them, and a frozen head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.experts = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(4, 4)])})
        self.out = nn.Linear(4, 8, bias=False)
        self.out.weight = self.embed.weight
        self.head = nn.Linear(4, 1, bias=False).requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        for layer in (*self.layers, self.experts["a"][0]):
            hidden = torch.tanh(layer(hidden))
        found: torch.Tensor = self.out(hidden)
        return found


NUMBERS = 8 * 4 + 3 * (16 + 4)


def trained(asked: str) -> tuple[Shares, Any, nn.Module, torch.optim.Optimizer]:
    """After one backward and one step of a net on one process."""
    accelerator = make_accelerator("fp32", cpu=True)
    net = Net()
    measure = Shares(asked, whole_of(net))
    module, optimizer = prepare(
        accelerator,
        Wanted("single"),
        net,
        lambda m: torch.optim.AdamW(p for p in m.parameters() if p.requires_grad),
    )
    accelerator.backward(module(torch.arange(8)).sum())
    measure.after_backward(module)
    optimizer.step()
    return measure, accelerator, module, optimizer


def test_every_byte_is_counted_once() -> None:
    measure, accelerator, module, optimizer = trained("single")
    assert measure.after_step(accelerator, module, optimizer)
    found = measure.measured
    assert found["class"] == "Net" and found["strategy"] == "single"
    assert found["parameters"] == {"whole": 4 * (NUMBERS + 4), "ranks": [4 * (NUMBERS + 4)]}
    assert found["gradients"] == {"whole": 4 * NUMBERS, "ranks": [4 * NUMBERS]}
    steps = 4 * 7  # AdamW counts the steps of each tensor
    assert found["optimizer"]["ranks"] == [8 * NUMBERS + steps]
    assert not measure.after_step(accelerator, module, optimizer), "the first step says it"
    flat = torch.zeros(10)
    assert held_bytes([flat[:4], flat[4:], flat[:4]]) == 40


@pytest.mark.parametrize("asked", ["ddp", "zero1", "zero3", "fsdp"])
def test_another_strategy_than_was_asked_for_ends_the_run(asked: str) -> None:
    with pytest.raises(
        UserError, match=rf"strategy: {asked} was asked for, and the run is under single \(Net\)"
    ):
        measure, *rest = trained(asked)
        measure.after_step(*rest)


@pytest.mark.parametrize(
    ("asked", "part"), [("zero1", "optimizer"), ("zero2", "gradients"), ("fsdp", "parameters")]
)
def test_a_rank_that_holds_everything_ends_the_run(
    asked: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, _, module, optimizer = trained(asked)
    monkeypatch.setattr(shares, "kind_of", lambda accelerator, module: asked)
    monkeypatch.setattr(shares, "_states", lambda module, optimizer: [torch.zeros(3 * NUMBERS)])
    two = SimpleNamespace(device=torch.device("cpu"), num_processes=2, gather=lambda own: own.repeat(2, 1))
    with pytest.raises(UserError, match=rf"which cuts the {part} over the processes, and one of 2 holds"):
        measure.after_step(two, module, optimizer)  # type: ignore[arg-type]
    free = Shares(asked, whole_of(Net()), checked=False)
    free.after_backward(module)
    assert free.after_step(two, module, optimizer), "a file of one's own may keep weights whole"  # type: ignore[arg-type]


def test_blocks_are_the_outermost_repeated_modules() -> None:
    net = Net()
    assert list(blocks(net)) == list(net.layers)
    nested = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for _ in range(3)])
    assert list(blocks(nn.Sequential(nested))) == list(nested)
