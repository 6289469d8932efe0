"""Rounding by calibration, against a solve of the same problem at every column, and by what it gains."""

from __future__ import annotations

import pytest
import torch

from espalier.models.quantise.calibrated import DAMPING, calibrate, rounded
from espalier.models.quantise.cpm import dequantise_rows, quantise_rows, unpack
from espalier.models.quantise.methods import Quantisation
from espalier.models.quantise.turn import quantised
from tests.models.conftest import Tiny, random_tokens


def inputs(n: int, columns: int) -> torch.Tensor:
    """Columns that go together, as hidden states do."""
    torch.manual_seed(4)
    return torch.randn(n, columns // 3) @ torch.randn(columns // 3, columns) + 0.2 * torch.randn(n, columns)


def by_solving(weight: torch.Tensor, scale: torch.Tensor, moment: torch.Tensor, largest: int) -> torch.Tensor:
    """Round a column, then set all columns behind it to what keeps the outputs nearest, by a least-squares solve."""
    damped = moment.double() + DAMPING * moment.diagonal().double().mean() * torch.eye(len(moment)).double()
    w, s = weight.double(), scale.double()
    left, numbers = w.clone(), torch.zeros_like(w)
    for j in range(w.shape[1]):
        numbers[:, j] = (left[:, j] / s).round().clamp(-largest, largest)
        off = numbers[:, : j + 1] * s[:, None] - w[:, : j + 1]
        if j + 1 < w.shape[1]:
            left[:, j + 1 :] = w[:, j + 1 :] - off @ damped[: j + 1, j + 1 :] @ torch.linalg.inv(
                damped[j + 1 :, j + 1 :]
            )
    return numbers


@pytest.mark.parametrize(("bits", "columns"), [(4, 12), (8, 30), (4, 150)])
def test_it_is_the_solution_column_by_column(bits: int, columns: int) -> None:
    x = inputs(400, columns)
    weight = torch.randn(6, columns)
    _, scale = quantise_rows(weight, bits)
    moment = x.t() @ x
    found = rounded(weight, scale, moment, bits)
    expected = by_solving(weight, scale, moment, 2 ** (bits - 1) - 1)
    assert float((found.double() == expected).double().mean()) > 0.99  # a tie may fall either way


def test_outputs_are_nearer_than_with_plain_rounding() -> None:
    x = inputs(500, 96)
    weight = torch.randn(40, 96)
    packed, scale = quantise_rows(weight, 4)
    plain = x @ (dequantise_rows(packed, scale, 4, 96) - weight).t()
    found = rounded(weight, scale, x.t() @ x, 4)
    ours = x @ (found.float() * scale[:, None] - weight).t()
    assert float(ours.norm()) < 0.6 * float(plain.norm())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_whole_model_comes_nearer_and_keeps_its_scales(name: str, tiny: Tiny) -> None:
    lm = tiny(name)
    small = quantised(lm, Quantisation("cpm", 4))
    texts = [random_tokens(60, seed) for seed in range(12)]
    held_out = torch.tensor([random_tokens(60, 99)])
    before = {n: b.clone() for n, b in small.named_buffers() if n.endswith("scale")}

    def off() -> float:
        with torch.no_grad():
            return float((small(input_ids=held_out).logits - lm(input_ids=held_out).logits).norm())

    first = off()
    calibrate(lm, small, texts)
    assert off() < first
    assert all(torch.equal(b, before[n]) for n, b in small.named_buffers() if n.endswith("scale"))
    for module in small.modules():
        if type(module).__name__ == "CpmLinear":
            assert int(unpack(module.get_buffer("packed"), module.in_features).abs().max()) <= 7  # type: ignore[arg-type]
