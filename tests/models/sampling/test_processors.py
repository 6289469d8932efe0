"""Against the processors of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from espalier.models.sampling.generate import Sampling, draw
from espalier.models.sampling.processors import biased, less_often, penalised


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_the_penalty_of_repetition_is_that_of_transformers(penalty: float) -> None:
    logits, seen = torch.randn(50) * 3, torch.tensor([4, 7, 4, 30, 31])
    truth = RepetitionPenaltyLogitsProcessor(penalty)(seen[None], logits[None].clone())[0]
    torch.testing.assert_close(penalised(logits, seen, penalty), truth, rtol=0, atol=0)
    assert (penalty == 1.0) == bool((truth == logits).all())


def test_penalties_of_presence_and_frequency_by_hand() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0])
    found = less_often(logits, torch.tensor([1, 1, 2]), 0.5, 0.25)
    assert found.tolist() == [1.0, 2.0 - 0.5 - 0.5, 3.0 - 0.5 - 0.25]
    assert less_often(logits, torch.tensor([], dtype=torch.int64), 0.5, 0.25).tolist() == logits.tolist()


def test_a_bias_is_added() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0])
    assert biased(logits, {2: -100.0, 0: 2.5}).tolist() == [3.5, 2.0, -97.0]
    assert logits.tolist() == [1.0, 2.0, 3.0], "the model's own logits stay"


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("min_p", [0.02, 0.1, 0.5])
def test_min_p_leaves_the_tokens_that_transformers_leaves(min_p: float, temperature: float) -> None:
    logits = torch.randn(1, 40) * 2
    left = MinPLogitsWarper(min_p)(torch.zeros(1, 1, dtype=torch.int64), logits / temperature)
    uniforms = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    tokens, _ = draw(logits.expand(4000, -1), uniforms, Sampling(temperature=temperature, min_p=min_p))
    shares = torch.bincount(tokens, minlength=40) / 4000
    torch.testing.assert_close(shares, left.softmax(-1)[0], rtol=0, atol=1e-3)
    assert 1 <= int((shares > 0).sum()) < 40
