"""What each rank really holds of weights, gradients and optimiser state, in bytes that are counted, and whether that is
what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from espalier.engine import fsdp, zero
from espalier.engine.strategy import SHARDED, kind_of
from espalier.errors import UserError

PARTS = ("parameters", "gradients", "optimizer")
CUT: dict[str, tuple[str, ...]] = {
    "single": (),
    "ddp": (),
    "zero1": ("optimizer",),
    "zero2": ("gradients", "optimizer"),
    **dict.fromkeys(SHARDED, PARTS),
}
"""What each strategy cuts over the ranks."""


@dataclass(frozen=True)
class Whole:
    """What one process holds that holds everything, before a strategy cuts or casts it.

    Attributes:
        weights, trained: how many numbers all parameters have, and those that are trained.
        weight_bytes, trained_bytes: their bytes.
    """

    weights: int
    trained: int
    weight_bytes: int
    trained_bytes: int


def whole_of(module: nn.Module) -> Whole:
    """Of a module that is not prepared yet."""
    parameters = list(module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    numbers = [sum(p.numel() for p in some) for some in (parameters, trained)]
    return Whole(numbers[0], numbers[1], held_bytes(parameters), held_bytes(trained))


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of what lies behind these tensors on this rank; what two of them share counts once."""
    places: dict[tuple[int, torch.device], int] = {}
    for tensor in tensors:
        # Of a bucket or flat buffer only what the tensor itself is: each part of it is counted at its own place.
        own = fsdp.local(tensor.detach())
        size = own.numel() * own.element_size()
        if size:
            at = (own.data_ptr(), own.device)
            places[at] = max(size, places.get(at, 0))
    return sum(places.values())


@dataclass
class Shares:
    """Measures the first step of a run.

    Attributes:
        kind: the strategy that was asked for.
        whole: bytes on one process that holds everything.
        checked: whether each rank's share is compared with what the strategy promises (a file of the user's own may keep
            weights whole up to any size).
        measured: what was found, as JSON; {} before the first step.
    """

    kind: str
    whole: Whole
    checked: bool = True
    measured: dict[str, Any] = field(default_factory=dict)
    _held: dict[str, int] = field(default_factory=dict)

    def after_backward(self, module: nn.Module) -> None:
        """Count gradients, before they are clipped; the first time only."""
        if "gradients" not in self._held and not self.measured:
            self._held["gradients"] = held_bytes(_gradients(module))

    def after_step(
        self, accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> bool:
        """Count the rest, and put all ranks' numbers together; returns whether there is something new.

        Raises:
            UserError: the module is under another strategy, or a rank holds more than its share.
        """
        if self.measured or "gradients" not in self._held:
            return False
        self._held["parameters"] = held_bytes(_parameters(module))
        self._held["optimizer"] = held_bytes(_states(module, optimizer))
        own = torch.tensor([self._held[part] for part in PARTS], device=accelerator.device)
        of_ranks: Any = accelerator.gather(own[None])
        found = kind_of(accelerator, module)
        self.measured = {
            "class": type(module).__name__ if found != "fsdp" else "FSDPModule",
            "strategy": found,
            **{
                part: {
                    "whole": self._whole(part, module, own.tolist()[at]),
                    "ranks": of_ranks[:, at].tolist(),
                }
                for at, part in enumerate(PARTS)
            },
        }
        self._check(found, accelerator.num_processes)
        return True

    def _whole(self, part: str, module: nn.Module, own: int) -> int:
        """Bytes on one process in the types of this engine; `own` is what this rank holds."""
        in_zero, all_of_it = zero.is_zero(module), self.whole
        each = next(module.parameters()).element_size()  # DeepSpeed casts all weights to one type
        if part == "parameters":
            return all_of_it.weights * each if in_zero else all_of_it.weight_bytes
        if part == "gradients":
            return all_of_it.trained * each if in_zero else all_of_it.trained_bytes
        if not (in_zero or fsdp.is_cut(module)):
            return own
        # AdamW's two means of a number in float32, and under ZeRO its master copy.
        return all_of_it.trained * 4 * (3 if in_zero else 2)

    def _check(self, found: str, ranks: int) -> None:
        if found != self.kind:
            raise UserError(
                f"strategy: {self.kind} was asked for, and the run is under {found} ({self.measured['class']}). This is a "
                "fault of Espalier or of the library; choose another strategy."
            )
        for part in CUT[self.kind] if self.checked and ranks > 1 else ():
            whole, most = self.measured[part]["whole"], max(self.measured[part]["ranks"])
            if most > (1 + 1 / ranks) / 2 * whole:
                raise UserError(
                    f"strategy: {self.kind} was asked for, which cuts the {part} over the processes, and one of {ranks} "
                    f"holds {most:,} of {whole:,} bytes. Choose another strategy, or a model of larger weights."
                )


def _parameters(module: nn.Module) -> Iterator[Tensor]:
    for parameter in module.parameters():
        yield parameter
        yield from zero.kept_apart(parameter)


def _gradients(module: nn.Module) -> Iterator[Tensor]:
    yield from (p.grad for p in module.parameters() if p.grad is not None)
    if zero.is_zero(module):
        for _, tensors in zero.gradients(module):
            yield from tensors


def _states(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    for state in inner.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
    if zero.is_zero(module):
        yield from (flat for _, flat in zero.flats(module))
