"""A linear layer with row-wise quantised weights, for `espalier.models.quantise.cpm`'s product."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espalier.models.quantise.cpm import dequantise_rows, product, quantise_rows


class CpmLinear(nn.Linear):
    """Stands where a linear layer (or a Conv1D) stood; the weights are frozen, the bias is as it was.

    It is a `nn.Linear` so that adapters find it. Its `weight` (out_features, in_features) is made anew whenever it is
    asked for, and what is written into it is lost: `dequantised` makes a layer that can be merged into.

    Args:
        in_features, out_features: as of nn.Linear.
        bits: 8 or 4.
        bias: whether there is one.
    """

    def __init__(self, in_features: int, out_features: int, bits: int, *, bias: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        self._is_hf_initialized = True  # transformers would draw random weights
        columns = in_features if bits == 8 else (in_features + 1) // 2
        self.register_buffer("packed", torch.zeros(out_features, columns, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None  # type: ignore[assignment]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        packed, scale = self.get_buffer("packed"), self.get_buffer("scale")
        return dequantise_rows(packed, scale, self.bits, self.in_features)

    def store(self, weight: Tensor) -> None:
        """Quantise and keep weights (out_features, in_features)."""
        self.packed, self.scale = quantise_rows(weight, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        out = product(x, self.get_buffer("packed"), self.get_buffer("scale"), self.bits)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def dequantised(self) -> nn.Linear:
        """A plain float32 layer with the weights that this one stands for."""
        bias = self.bias is not None
        made = nn.Linear(self.in_features, self.out_features, bias=bias, device="meta")
        made.weight = nn.Parameter(self.weight.contiguous())
        if bias:
            made.bias = self.bias
        return made

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"
