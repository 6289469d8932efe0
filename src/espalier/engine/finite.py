"""Numbers that are none: which weights hold them, and the refusal to keep such weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from espalier.errors import UserError


def cause(module: nn.Module) -> str:
    """Whether the weights are broken already, which no learning rate cures, as a sentence for an error.

    >>> cause(nn.Linear(2, 2))
    'The weights themselves are numbers.'
    """
    broken = broken_tensors(dict(module.named_parameters()))
    if not broken:
        return "The weights themselves are numbers."
    return f"The weights hold values that are no numbers: {_named(broken)}."


def check_weights(tensors: Mapping[str, Tensor], step: int) -> None:
    """Weights that are no numbers never take the place of good ones.

    Args:
        tensors: what is to be kept, by name.
        step: the optimiser step that it comes from.

    Raises:
        UserError: one of them holds nan or inf.
    """
    broken = broken_tensors(tensors)
    if broken:
        raise UserError(
            f"step {step}: after it the weights hold values that are no numbers ({_named(broken)}), so nothing was "
            "saved; earlier checkpoints and models are kept. Lower learning_rate and run again from the last "
            "checkpoint."
        )


def broken_tensors(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many values of each tensor are nan or inf; tensors without any are left out."""
    counts = {}
    for name, tensor in tensors.items():
        local = tensor.detach()
        local = local.to_local() if hasattr(local, "to_local") else local  # this rank's part of a sharded one
        if local.is_floating_point() and not bool(torch.isfinite(local).all()):
            counts[name] = int((~torch.isfinite(local)).sum())
    return counts


def _named(broken: Mapping[str, int]) -> str:
    first, *others = broken
    more = f" and {len(others)} more tensor{'s' * (len(others) > 1)}" if others else ""
    return f"{broken[first]} in {first}{more}"
