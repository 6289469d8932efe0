"""Rounding that makes up for its own errors on texts like those to come (GPTQ: Frantar et al. 2022), on cpm's grid.

Columns are rounded from the first to the last; what each rounding has changed in a layer's outputs is taken back, as
far as it can be, by the columns that are not rounded yet. Scales stay those of the plain weights. Left out: other
orders of columns, groups, and inputs that have passed through layers already quantised.

N rows of weights, K columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from espalier.models.quantise.cpm import LARGEST, pack
from espalier.models.quantise.cpm_linear import CpmLinear

DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: inputs that never vary must not divide by zero."""

AT_ONCE = 2**28
"""Numbers of the matrices H that are held at one time (1 GiB); more layers mean more passes over the texts."""

BLOCK = 128
"""Columns whose effect on those behind the block is applied at once."""


@torch.no_grad()
def calibrate(plain: nn.Module, small: nn.Module, texts: Sequence[Sequence[int]]) -> None:
    """Round the weights of a model that is quantised by cpm again, by what its layers read in these texts.

    Args:
        plain: the model in floats.
        small: the same, quantised; its stored numbers are replaced.
        texts: token ids; as many tokens as the widest layer has columns, or more.
    """
    waiting = [(name, module) for name, module in small.named_modules() if isinstance(module, CpmLinear)]
    while waiting:
        now: list[tuple[str, CpmLinear]] = []
        size = 0
        while waiting and (not now or size + waiting[0][1].in_features ** 2 <= AT_ONCE):
            now.append(waiting.pop(0))
            size += now[-1][1].in_features ** 2
        seen = _second_moments(plain, [name for name, _ in now], texts)
        for name, module in now:
            layer: Any = plain.get_submodule(name)
            weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
            numbers = rounded(weight, module.get_buffer("scale"), seen[name], module.bits)
            module.packed = pack(numbers) if module.bits == 4 else numbers


def _second_moments(lm: nn.Module, names: Sequence[str], texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """``sum x x^T`` (K, K) over the inputs of these layers."""
    sums: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, -2).float()
            sums[name] = sums.get(name, 0) + x.t() @ x

        return hook

    handles = [lm.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    device = next(lm.parameters()).device
    try:
        for tokens in texts:
            lm(input_ids=torch.tensor([list(tokens)], device=device))
    finally:
        for handle in handles:
            handle.remove()
    for name in names:  # a layer that no text has reached
        layer: Any = lm.get_submodule(name)
        sums.setdefault(name, torch.eye(layer.nx if isinstance(layer, Conv1D) else layer.in_features))
    return sums


def rounded(weight: Tensor, scale: Tensor, moment: Tensor, bits: int) -> Tensor:
    """int8 (N, K) numbers for the weights (N, K), whose scales (N,) are given.

    Args:
        moment: (K, K) ``sum x x^T`` over the layer's inputs.
    """
    left = weight.detach().float().clone()
    damped = moment.double() + DAMPING * moment.diagonal().double().mean().clamp(min=1e-8) * torch.eye(
        len(moment), dtype=torch.float64, device=moment.device
    )
    # Row j of the upper Cholesky factor of the inverse says how the columns behind j make up for an error in j.
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True).float()
    step = scale.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    numbers = torch.zeros_like(left, dtype=torch.int8)
    for start in range(0, left.shape[1], BLOCK):
        end = min(start + BLOCK, left.shape[1])
        errors = left.new_zeros(len(left), end - start)
        for j in range(start, end):
            column = left[:, j : j + 1]
            chosen = (column / step).round().clamp(-LARGEST[bits], LARGEST[bits])
            numbers[:, j] = chosen[:, 0].to(torch.int8)
            errors[:, j - start] = ((column - chosen * step) / factor[j, j])[:, 0]
            left[:, j + 1 : end] -= errors[:, j - start, None] * factor[j, j + 1 : end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return numbers
