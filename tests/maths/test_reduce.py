from __future__ import annotations

import statistics

import pytest
import torch

from espalier.maths.reduce import masked_mean, masked_sum, masked_var, segment_mean, segment_sum, whiten


@pytest.fixture
def grid() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    return torch.randn(3, 4, dtype=torch.float64), mask


@pytest.mark.parametrize("garbage", [1e30, float("inf"), float("nan")])
def test_masked_cells_never_matter(grid: tuple[torch.Tensor, torch.Tensor], garbage: float) -> None:
    x, mask = grid
    dirty = x.masked_fill(~mask, garbage)
    for function in (masked_sum, masked_mean, masked_var, whiten):
        assert torch.equal(function(dirty, mask), function(x, mask)), function.__name__
    for dim in (0, 1):
        assert torch.equal(masked_sum(dirty, mask, dim), masked_sum(x, mask, dim))
        assert torch.equal(masked_mean(dirty, mask, dim), masked_mean(x, mask, dim))


def test_gradient_of_masked_cells_is_zero(grid: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, mask = grid
    leaf = x.masked_fill(~mask, float("nan")).requires_grad_()
    masked_mean(leaf, mask).backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, mask.double() / mask.sum())


def test_equal_to_python_statistics(grid: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, mask = grid
    numbers = x[mask].tolist()
    assert masked_sum(x, mask).item() == pytest.approx(sum(numbers))
    assert masked_mean(x, mask).item() == pytest.approx(statistics.mean(numbers))
    assert masked_var(x, mask).item() == pytest.approx(statistics.variance(numbers))


def test_nothing_selected_gives_zero_and_not_nan() -> None:
    x, mask = torch.full((2, 3), float("nan")), torch.zeros(2, 3, dtype=torch.bool)
    assert masked_sum(x, mask).item() == masked_mean(x, mask).item() == masked_var(x, mask).item() == 0
    assert masked_mean(x, mask, 1).tolist() == [0, 0]
    assert whiten(x, mask).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_whitened_numbers_have_mean_zero_and_deviation_one(grid: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, mask = grid
    white = whiten(5 * x + 3, mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert white[mask].std().item() == pytest.approx(1, abs=1e-6)
    kept = whiten(5 * x + 3, mask, shift_mean=False)
    assert kept[mask].mean().item() == pytest.approx((5 * x + 3)[mask].mean().item())
    assert (white[~mask] == 0).all() and (kept[~mask] == 0).all()


def test_segments_equal_a_plain_loop() -> None:
    x, index = torch.randn(20, dtype=torch.float64), torch.randint(0, 6, (20,))
    index[index == 4] = 5
    for s in range(7):
        members = [x[b].item() for b in range(20) if index[b] == s]
        assert segment_sum(x, index, 7)[s].item() == pytest.approx(sum(members))
        assert segment_mean(x, index, 7)[s].item() == pytest.approx(
            statistics.mean(members) if members else 0
        )
    assert torch.autograd.gradcheck(lambda v: segment_mean(v, index, 7), x.requires_grad_())
