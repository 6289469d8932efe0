"""What is done to one row's logits before a token is drawn: pure functions of tensors.

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that were read or written already less likely (Keskar et al. 2019, section 4.1).

    Args:
        logits: (V,).
        seen: (n,) ids of prompt and answer so far; how often one stands there makes no difference.
        penalty: a positive logit is divided by it, a negative one multiplied; 1 changes nothing, less than 1 invites
            repetition.
    """
    scores = logits[seen]
    return logits.index_copy(0, seen, torch.where(scores < 0, scores * penalty, scores / penalty))


def less_often(logits: Tensor, written: Tensor, presence: float, frequency: float) -> Tensor:
    """OpenAI's penalties: a constant for each token that the answer has, and one more for each time that it has it.

    Args:
        logits: (V,).
        written: (n,) ids of the answer so far.
        presence, frequency: subtracted from the logit, once and for each time.
    """
    counts = torch.bincount(written, minlength=len(logits)).to(logits.dtype)
    return logits - presence * (counts > 0) - frequency * counts


def biased(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Add a number to the logits (V,) of some tokens."""
    added = torch.zeros_like(logits)
    for token, value in bias.items():
        added[token] = value
    return logits + added
