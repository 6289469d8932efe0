from __future__ import annotations

import pytest
import torch

from espalier.maths import metrics


def test_clip_fraction_counts_exactly_the_tokens_whose_gradient_is_stopped() -> None:
    from espalier.maths.losses import clipped_policy

    logprobs = torch.randn(8, 9, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(8, 9, dtype=torch.float64)
    old = torch.zeros(8, 9, dtype=torch.float64)
    clipped_policy(logprobs, old, advantages, 0.1, 0.3).sum().backward()
    assert logprobs.grad is not None
    fraction = metrics.clip_fraction(logprobs.detach(), old, advantages, 0.1, 0.3)
    assert torch.equal(fraction, (logprobs.grad == 0).double())
    assert 0 < fraction.mean() < 1


def test_pairing_takes_the_difficulty_of_questions_out_of_the_error() -> None:
    difficulty = torch.randn(400, dtype=torch.float64) * 10
    noise = torch.randn(400, dtype=torch.float64)
    difference = metrics.paired_difference(difficulty, difficulty + 0.5 + noise)
    assert difference.value == pytest.approx(0.5 + noise.mean().item())
    assert difference.stderr == pytest.approx(noise.std().item() / 20)
    assert difference.high - difference.value == pytest.approx(1.959964 * difference.stderr, rel=1e-6)
    assert difference.value - difference.low == pytest.approx(difference.high - difference.value)
    assert difference.n == 400


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("答案是7。", "答案是７", True),
        ("The  answer is 7.\n", "the answer is 7", True),
        ("答案 是 7", "答案是 7", True),
        ("Ｔｕｅｓｄａｙ", "tuesday", True),
        ("“蓝色”", "蓝色", True),
        ("17", "7", False),
        ("-7", "7", False),
        ("3.5", "35", False),
        (".5", "5", False),
        ("", "7", False),
    ],
)
def test_exact_match(prediction: str, reference: str, same: bool) -> None:
    assert metrics.exact_match(prediction, ["no", reference]) is same
