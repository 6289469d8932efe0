from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from espalier.maths import losses
from espalier.maths.reduce import masked_mean, masked_sum


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_both_pairwise_spellings_are_one_loss() -> None:
    chosen = torch.cat([torch.linspace(-1e4, 1e4, 41), torch.linspace(-3, 3, 61)]).double().requires_grad_()
    rejected = torch.zeros_like(chosen)
    one, other = losses.pairwise_log_sig(chosen, rejected), losses.pairwise_log_exp(chosen, rejected)
    assert torch.isfinite(other).all()
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    (slope_one,) = torch.autograd.grad(one.sum(), chosen)
    (slope_other,) = torch.autograd.grad(other.sum(), chosen)
    torch.testing.assert_close(slope_one, slope_other, rtol=1e-12, atol=1e-12)
    assert slope_other[chosen == 0].unique().tolist() == [-0.5]


def test_ranking_pairs_against_a_double_loop() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0, 2.0, 5.0, 0.0, 0.0, -1.0])
    tree_id = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2])
    wanted = [
        (i, j)
        for i in range(8)
        for j in range(8)
        if tree_id[i] == tree_id[j] and scores[i].item() > scores[j].item()
    ]
    better, worse = losses.ranking_pairs(scores, tree_id)
    assert list(zip(better.tolist(), worse.tolist(), strict=True)) == wanted
    assert len(wanted) == 5 + 2


def test_no_pairs_is_an_empty_pair_of_indices() -> None:
    better, worse = losses.ranking_pairs(torch.ones(3), torch.zeros(3, dtype=torch.long))
    assert better.shape == worse.shape == (0,)
    assert better.dtype == torch.long


def test_policy_loss_at_ratio_one_is_minus_the_mean_advantage() -> None:
    logprobs, advantages = rand(3, 4), torch.randn(3, 4, dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor([[4], [2], [1]])
    loss = losses.clipped_policy(logprobs, logprobs.detach(), advantages, 0.2, 0.2)
    mean = masked_mean(loss, mask)
    assert mean.item() == pytest.approx(-advantages[mask].mean().item())
    (slope,) = torch.autograd.grad(masked_sum(loss, mask), logprobs)
    torch.testing.assert_close(slope, (-advantages).masked_fill(~mask, 0))  # REINFORCE at the first step


def test_clip_stops_the_gradient_only_on_the_side_the_advantage_pushes_to() -> None:
    ratio = torch.tensor([[0.5, 0.5, 1.4, 1.4, 1.25, 1.25]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    logprobs = ratio.log().requires_grad_()
    loss = losses.clipped_policy(logprobs, torch.zeros_like(ratio), advantages, clip_low=0.2, clip_high=0.3)
    loss.sum().backward()
    torch.testing.assert_close(
        loss.detach(), torch.tensor([[-0.5, 0.8, -1.3, 1.4, -1.25, 1.25]], dtype=torch.float64)
    )
    assert logprobs.grad is not None
    torch.testing.assert_close(
        logprobs.grad, torch.tensor([[-0.5, 0.0, 0.0, 1.4, -1.25, 1.25]], dtype=torch.float64)
    )


def test_one_advantage_a_branch_is_the_same_on_every_token() -> None:
    logprobs, old, advantages = rand(3, 4), rand(3, 4).detach(), torch.randn(3, 1, dtype=torch.float64)
    torch.testing.assert_close(
        losses.clipped_policy(logprobs, old, advantages, 0.2, 0.2),
        losses.clipped_policy(logprobs, old, advantages.expand(3, 4), 0.2, 0.2),
    )


def test_value_loss_takes_the_worse_of_the_two() -> None:
    values, old = torch.tensor([0.0, 2.0, 0.1]), torch.tensor([1.0, 1.0, 0.0])
    returns = torch.tensor([0.0, 2.0, 3.0])
    # 0: clipped to 0.8, (0.8)^2/2; 1: clipped to 1.2, (0.8)^2/2; 2: inside the range, (2.9)^2/2
    torch.testing.assert_close(
        losses.clipped_value(values, old, returns, 0.2), torch.tensor([0.32, 0.32, 4.205])
    )


Pairwise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b, c, d: losses.pairwise_log_sig(a + c, b + d),
        lambda a, b, c, d: losses.pairwise_log_exp(a + c, b + d),
        lambda a, b, c, d: losses.nll(a * b * c * d),
        lambda a, b, c, d: losses.clipped_policy(a, b, c * d, 0.2, 0.3),
        lambda a, b, c, d: losses.clipped_value(a + b, torch.linspace(-2, 2, 7), c + d, 0.2),
    ],
)
def test_gradients_by_finite_differences(loss: Pairwise) -> None:
    assert gradcheck(loss, [rand(7) for _ in range(4)])


def test_padding_never_matters() -> None:
    logprobs, old, advantages = rand(2, 5), rand(2, 5).detach(), rand(2, 5).detach()
    mask = torch.arange(5) < torch.tensor([[3], [5]])

    def total(noise: float) -> tuple[Tensor, Tensor]:
        dirty = [torch.where(mask, x, noise) for x in (logprobs, old, advantages)]
        loss = losses.clipped_policy(dirty[0], dirty[1], dirty[2], 0.2, 0.2)
        loss = loss + losses.clipped_value(dirty[0], dirty[1], dirty[2], 0.2) + losses.nll(dirty[0])
        value = masked_sum(loss, mask)
        return value, torch.autograd.grad(value, logprobs)[0]

    for clean, dirty in zip(total(0.0), total(123.0), strict=True):
        assert torch.equal(clean, dirty)
    assert torch.equal(total(0.0)[1][~mask], torch.zeros(2, dtype=torch.float64))
