"""Row-wise symmetric int8 and int4 weights (the predecessors' "cpm" scheme): rounding, packing, and the product.

A row of weights w becomes ``q = round(w / s)`` with ``s = max|w| / (2^(bits-1) - 1)``, and is read as ``q * s``. Two int4
stand in a byte, that of the even column above that of the odd one. Only weights are quantised, never activations.

On a CPU the product turns some rows at a time back into floats that stay in the caches and multiplies them: as
fast as float32 from about 32 rows of activations on, with the same result. While one token a row is generated, a
few rows of activations meet int8 weights in torch's own kernel, which rounds the activations to bfloat16: about 0.2 %
of rounding where quantising has cost 1 %. For int4 and for float32 activations that kernel is slower than this.

N rows of weights, K columns, M rows of activations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGEST = {8: 127, 4: 7}
"""Bits to the largest number that is stored; the smallest is its negative."""

TILE_ROWS, TILE_NUMBERS = 256, 2**20
"""Weights that are floats at one time."""

FEW = 16
"""Rows of activations up to which torch's int8 kernel was faster, at 1024 and 4096 columns alike."""


def quantise_rows(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Weights (N, K) as int8 (N, K), or (N, (K + 1) // 2) for 4 bits, and their scales (N,) in float32."""
    weight = weight.detach().float().contiguous()
    scale = weight.abs().amax(1) / LARGEST[bits]
    numbers = (weight / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8)
    return (pack(numbers) if bits == 4 else numbers), scale


def dequantise_rows(packed: Tensor, scale: Tensor, bits: int, columns: int) -> Tensor:
    """The weights (N, K) in float32 that `packed` stands for; `columns` is K."""
    numbers = unpack(packed, columns) if bits == 4 else packed
    return numbers.float() * scale.float()[:, None]


def pack(numbers: Tensor) -> Tensor:
    """int8 (N, K) from -8 to 7 as int8 (N, (K + 1) // 2); an odd last column gets a 0 beside it."""
    numbers = torch.nn.functional.pad(numbers, (0, numbers.shape[1] % 2))
    return (numbers[:, 0::2] << 4) | (numbers[:, 1::2] & 15)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """The inverse of `pack`; `columns` is K."""
    return torch.stack([packed >> 4, (packed << 4) >> 4], -1).flatten(1)[:, :columns]


def product(x: Tensor, packed: Tensor, scale: Tensor, bits: int) -> Tensor:
    """``x @ W.T`` (…, N) of activations (…, K) with quantised weights; gradients flow to x alone.

    Under autocast the activations take its type, as those of any linear layer do.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        if bits == 8 and _generating(x):
            return _few_rows(x, packed, scale)
        product_of: Any = _Product.apply  # torch's functions with a backward have no types
        out: Tensor = product_of(x, packed, scale, bits)
        return out


def _generating(x: Tensor) -> bool:
    """Whether these are the single tokens of a few rows on a CPU, without gradients.

    The kernel reads whole vectors and goes past the end of rows that are no multiple of them.
    """
    single = (x.dim() == 2 or x.shape[-2] == 1) and x.shape[-1] % 64 == 0
    few = x.numel() // x.shape[-1] <= FEW
    return single and few and x.device.type == "cpu" and not torch.is_grad_enabled()


def _few_rows(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).bfloat16()
    # The scales are applied in float32: as bfloat16 they would be off by as much in a whole row.
    ones = torch.ones(len(packed), dtype=torch.bfloat16)
    out = torch._weight_int8pack_mm(rows, packed, ones).float() * scale
    return out.to(x.dtype).view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """The product and, backward, ``grad_x = grad_out @ W``; nothing but the quantised weights is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.bits, ctx.columns = bits, x.shape[-1]
        rows = _halves(x.reshape(-1, x.shape[-1])) if bits == 4 else x.reshape(-1, x.shape[-1])
        tiles = [rows @ tile.t() for _, tile in _tiles(packed, bits, x.dtype)]
        out = torch.cat(tiles, 1).mul_(scale.to(x.dtype))
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        packed, scale = ctx.saved_tensors
        grad = grads[0]
        rows = grad.reshape(-1, grad.shape[-1]) * scale.to(grad.dtype)
        width = packed.shape[1] * (2 if ctx.bits == 4 else 1)
        values = rows.new_zeros(len(rows), width)
        for start, tile in _tiles(packed, ctx.bits, grad.dtype):
            values.addmm_(rows[:, start : start + len(tile)], tile)
        if ctx.bits == 4:
            values = values.view(len(rows), 2, -1).transpose(1, 2).flatten(1)[:, : ctx.columns]
        return values.reshape(*grad.shape[:-1], ctx.columns), None, None, None


def _halves(rows: Tensor) -> Tensor:
    """(M, K) with the even columns before the odd ones: unpacking then writes two runs instead of a zip."""
    rows = torch.nn.functional.pad(rows, (0, rows.shape[1] % 2))
    return torch.cat([rows[:, 0::2], rows[:, 1::2]], 1)


def _tiles(packed: Tensor, bits: int, dtype: torch.dtype) -> Any:
    """The stored numbers as floats, some rows at a time: (first row, (rows, K)); int4 columns as `_halves` has them.

    The memory is the same each time. A GPU, which would rather have one large product, gets all rows at once.
    """
    half = packed.shape[1]
    width = 2 * half if bits == 4 else half
    step = max(16, min(TILE_ROWS, TILE_NUMBERS // max(1, width)))
    if packed.device.type != "cpu":
        step = len(packed)
    buffer = torch.empty(min(step, len(packed)), width, dtype=dtype, device=packed.device)
    for start in range(0, len(packed), step):
        part = packed[start : start + step]
        tile = buffer[: len(part)]
        if bits == 4:
            tile[:, :half], tile[:, half:] = part >> 4, (part << 4) >> 4
        else:
            tile.copy_(part)
        yield start, tile
