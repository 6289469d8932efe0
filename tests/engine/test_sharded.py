"""Clipping and whole tensors of a small net under every strategy on two ranks, one after another in one process.

Plain SGD steps by the gradient itself, so that a wrong factor is a wrong weight; AdamW would hide it.
"""

from __future__ import annotations

import sys

import pytest

from tests import processes

pytestmark = pytest.mark.slow
RANK = """
import copy, os
import torch
from torch import nn
from espalier.engine import strategy
from espalier.engine.whole import set_parameters, whole_model, whole_parameters

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.b = nn.Linear(6, 3)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
    def forward(self, x):
        for layer in self.a:
            x = torch.tanh(layer(x))
        return self.b(self.frozen(x))

def optimizer_of(module):
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    # Three groups, two of one part, in another order than the parts.
    return torch.optim.SGD([
        {"params": [p for n, p in named if n.startswith("a.") and p.dim() == 2], "part": "a"},
        {"params": [p for n, p in named if n.startswith("b.")], "part": "b"},
        {"params": [p for n, p in named if n.startswith("a.") and p.dim() == 1], "part": "a"},
    ], lr=0.5)

def parts_of(optimizer, limits):
    parts = {}
    for number, group in enumerate(optimizer.param_groups):
        own = parts.setdefault(group["part"], ([], [], limits[group["part"]]))
        own[0].extend(group["params"])
        own[1].append(number)
    return list(parts.values())

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.manual_seed(0)
start = Net()
data = [10 * torch.randn(4, 6) for _ in range(4)]
LIMITS = {"a": 0.3, "b": 0.02}

def step(accelerator, module, optimizer, batches, limits, share):
    for number, batch in enumerate(batches):
        last = number == len(batches) - 1
        with strategy.apart(accelerator, module, last=last):
            strategy.backward(accelerator, module, module(batch).pow(2).sum() * share, last=last)
    parts = parts_of(optimizer, limits) if limits else ()
    norm = strategy.clip_gradients(accelerator, module, 0.1, parts)
    strategy.update(module, optimizer)
    optimizer.zero_grad()
    return norm

for limits in (None, LIMITS):
    alone = copy.deepcopy(start)
    plain = optimizer_of(alone)
    truth = []
    for _ in range(2):
        sum(alone(batch).pow(2).sum() for batch in data).backward()
        norms = []
        for parameters, _, limit in parts_of(plain, limits) if limits else [(list(alone.parameters()), 0, 0.1)]:
            norms.append(float(nn.utils.clip_grad_norm_([p for p in parameters if p.requires_grad], limit)))
            assert norms[-1] > 2 * limit, "the clipping is felt"
        plain.step()
        plain.zero_grad()
        truth.append(torch.tensor(norms).norm().item())
    for kind in ("zero2", "ddp", "zero3", "fsdp", "zero1", "zero3", "ddp"):
        accelerator = strategy.make_accelerator("fp32", cpu=True)
        module, optimizer = strategy.prepare(
            accelerator, strategy.Wanted(kind, hidden=1), copy.deepcopy(start), optimizer_of)
        assert strategy.kind_of(accelerator, module) == kind
        own = data[rank::world]
        found = [step(accelerator, module, optimizer, own, limits, world) for _ in range(2)]
        for ours, theirs in zip(found, truth):
            assert abs(ours - theirs) < 1e-4 * theirs, (kind, found, truth)
        whole = whole_parameters(accelerator, module)
        weights = dict(alone.named_parameters())
        assert set(whole) == {n for n, p in weights.items() if p.requires_grad}
        for name, tensor in whole.items():
            assert (tensor - weights[name]).abs().max() < 1e-6, (kind, name)
            assert (tensor - dict(start.named_parameters())[name]).abs().max() > 1e-3, "it has learned"
        everything = whole_model(accelerator, module)
        assert ("frozen.weight" in everything) == (kind in strategy.SHARDED)
        if kind in strategy.SHARDED:
            assert torch.equal(everything["frozen.weight"], start.frozen.weight)
        set_parameters(accelerator, module, {n: t + 1 for n, t in whole.items()})
        for name, tensor in whole_parameters(accelerator, module).items():
            assert torch.equal(tensor, whole[name] + 1), (kind, name)
        with torch.no_grad():
            shifted = copy.deepcopy(alone)
            for name, parameter in shifted.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(whole[name] + 1)
            assert torch.allclose(module(data[0]), shifted(data[0]), atol=1e-4), kind
"""
PARENT = f"""
import sys
from espalier.engine.launch import as_ranks
sys.exit(as_ranks([sys.executable, "-c", {RANK!r}], 2))
"""


def test_a_small_net_under_every_strategy() -> None:
    pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
    done = processes.run([sys.executable, "-c", PARENT], capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
