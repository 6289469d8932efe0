"""Row-wise int8 and int4: the formula written again, packing bit by bit, the product and its gradient."""

from __future__ import annotations

import pytest
import torch

from espalier.models.quantise import cpm
from espalier.models.quantise.cpm_linear import CpmLinear

SHAPES = [(5, 7), (64, 32), (300, 129), (1, 1), (700, 2048)]


def formula(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The weights that are meant, number by number."""
    found = torch.zeros_like(weight)
    largest = 2 ** (bits - 1) - 1
    for i, row in enumerate(weight.tolist()):
        scale = max(abs(w) for w in row) / largest
        for j, w in enumerate(row):
            found[i, j] = round(w / scale) * scale if scale else 0.0
    return found


def made(
    rows: int, columns: int, bits: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return weight, *cpm.quantise_rows(weight, bits)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_the_weights_are_those_of_the_formula(shape: tuple[int, int], bits: int) -> None:
    weight, packed, scale = made(*shape, bits)
    found = cpm.dequantise_rows(packed, scale, bits, shape[1])
    step = scale[:, None] * 1e-4  # a number may lie on the edge between two
    expected = formula(weight, bits)
    assert bool(((found - expected).abs() <= step).double().mean() > 0.999)
    assert bool(((found - weight).abs() <= scale[:, None] * 0.5001).all())
    assert packed.dtype == torch.int8 and packed.shape == (
        shape[0],
        shape[1] if bits == 8 else (shape[1] + 1) // 2,
    )
    largest = found.abs().amax(1)
    assert torch.allclose(largest, weight.abs().amax(1), rtol=1e-6)


def test_two_numbers_stand_in_a_byte_the_even_column_above() -> None:
    numbers = torch.tensor([[-7, 7, 0, -1, 3]], dtype=torch.int8)
    packed = cpm.pack(numbers)
    assert [byte & 0xFF for byte in packed[0].tolist()] == [0x97, 0x0F, 0x30]
    assert torch.equal(cpm.unpack(packed, 5), numbers)
    every = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 1)
    assert torch.equal(cpm.unpack(cpm.pack(every), 16), every)


def test_a_row_of_zeros_stays_zeros() -> None:
    for bits in (8, 4):
        packed, scale = cpm.quantise_rows(torch.zeros(2, 6), bits)
        assert not cpm.dequantise_rows(packed, scale, bits, 6).any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_and_its_gradient_are_those_of_the_weights(shape: tuple[int, int], bits: int) -> None:
    _, packed, scale = made(*shape, bits)
    weight = cpm.dequantise_rows(packed, scale, bits, shape[1])
    x = torch.randn(3, 11, shape[1], requires_grad=True)
    found = cpm.product(x, packed, scale, bits)
    expected = x @ weight.t()
    limit = 2e-5 * float(expected.abs().max().detach())
    assert float((found - expected).detach().abs().max()) < limit
    pull = torch.randn_like(found)
    (own,) = torch.autograd.grad(found, x, pull)
    (true,) = torch.autograd.grad(expected, x, pull)
    assert float((own - true).abs().max()) < 2e-5 * float(true.abs().max())


@pytest.mark.parametrize("bits", [8, 4])
def test_the_gradient_by_finite_differences(bits: int) -> None:
    _, packed, scale = made(6, 5, bits)
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: cpm.product(x, packed, scale.double(), bits), (x,))


@pytest.mark.parametrize("shape", [*SHAPES, (5, 64), (301, 192)])
def test_single_tokens_take_the_fast_kernel_and_are_near(shape: tuple[int, int]) -> None:
    _, packed, scale = made(*shape, 8)
    weight = cpm.dequantise_rows(packed, scale, 8, shape[1])
    x = torch.randn(4, 1, shape[1])
    with torch.no_grad():
        assert cpm._generating(x) == (shape[1] % 64 == 0)  # others would make the kernel read past their ends
        assert not cpm._generating(torch.randn(4, 2, shape[1]))
        found = cpm.product(x, packed, scale, 8)
    expected = x @ weight.t()
    size = x.norm(dim=-1, keepdim=True) * weight.norm(dim=1)
    assert found.shape == expected.shape and bool(((found - expected).abs() <= 0.02 * size).all())
    assert not cpm._generating(x)  # with gradients it is exact
    assert float((cpm.product(x, packed, scale, 8) - expected).abs().max()) < 1e-3


def test_autocast_computes_in_its_own_type() -> None:
    layer = CpmLinear(16, 8, 4, bias=True)
    layer.store(torch.randn(8, 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 3, 16)).dtype == torch.bfloat16
    assert layer(torch.randn(2, 3, 16)).dtype == torch.float32


def test_the_layer_turns_back_and_is_never_trained() -> None:
    layer = CpmLinear(16, 8, 8, bias=True).requires_grad_(False)
    layer.store(torch.randn(8, 16))
    plain = layer.dequantised()
    x = torch.randn(5, 20, 16)
    assert float((layer(x) - plain(x)).abs().max()) < 1e-5
    assert [n for n, p in layer.named_parameters()] == ["bias"] and set(layer.state_dict()) == {
        "packed",
        "scale",
        "bias",
    }
