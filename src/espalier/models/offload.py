"""Frozen models that lie in the CPU's memory, and on the GPU only while they are asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_PARKED = "_espalier_parked"


def park(module: nn.Module, beside: Iterable[nn.Module], device: torch.device) -> int:
    """Move a frozen module's own weights to the CPU until `resident` asks for them; returns their bytes.

    Args:
        module: none of its weights is trained.
        beside: the run's other models; weights that one of them holds too stay on the device.
        device: where the module computes.
    """
    kept = {id(tensor) for other in beside for tensor in _tensors(other)}
    own = [tensor for tensor in _tensors(module) if id(tensor) not in kept]
    assert not any(tensor.requires_grad for tensor in own), (
        "a trained weight has a gradient and an optimiser's state"
    )
    size = sum(tensor.numel() * tensor.element_size() for tensor in own)
    setattr(module, _PARKED, (own, device))
    _move(own, torch.device("cpu"))
    return size


@contextmanager
def resident(*modules: nn.Module | None) -> Iterator[None]:
    """Have the weights of parked modules where they compute; of others nothing happens."""
    parked = [getattr(module, _PARKED) for module in modules if hasattr(module, _PARKED)]
    try:
        for own, device in parked:
            _move(own, device)
        yield
    finally:
        for own, _ in parked:
            _move(own, torch.device("cpu"))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _move(tensors: list[Tensor], device: torch.device) -> None:
    for tensor in tensors:
        tensor.data = tensor.data.to(device)
