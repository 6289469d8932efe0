"""Prompts that are read both ways: the masks and two-channel positions of GLM and ChatGLM-6B.

A row is a prompt with a blank in it ([MASK], [sMASK] or [gMASK]), then ``<sop>`` and what fills the blank
(Du et al. 2022). Everybody sees the whole prompt; from ``<sop>`` on it is causal. The first channel of the
positions counts the prompt and then stays at the blank; the second is 0 in the prompt and then counts from 1::

    ids         你   好   [gMASK]  <sop>   很   好   <eop>
    channel 0   0    1    2        2       2    2    2
    channel 1   0    0    0        1       2    3    4

Where several blanks are filled, the spans follow each other in any order (Du et al. 2022, figure 2), and each begins
with its own ``<sop>`` at its own blank. Which blank that is the ids do not say; positions must be given then. The
``<eop>`` that a span ends with is not among what the original reads: here it stands in the row, as what is learned
there, with 0 in channel 1, and nobody sees it::

    ids         你   [MASK]   世   [MASK]  <sop>   界   <eop>   <sop>   好   <eop>
    channel 0   0    1        2    3       3       3    -       1       1    -
    channel 1   0    0        0    0       1       2    0       1       2    0

Of one filled blank everything follows from the ids and a padding mask, so rows that are padded on either side, and batches that
know nothing of two channels, need nothing more. A row without ``<sop>`` is causal from the start.

B rows, Q queries, K keys (those of a cache included).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """Where the prompts of a batch end.

    Attributes:
        start: (B,) the place of ``<sop>``; beyond every row where there is none.
        blank: (B,) the position (channel 0) of the blank that is filled.
    """

    start: Tensor
    blank: Tensor

    @property
    def shared(self) -> Tensor:
        """(B,) how many tokens everybody sees: all before ``<sop>``, none where there is no ``<sop>``."""
        return torch.where(self.start == NEVER, 0, self.start)


NEVER = 2**40
"""A place that no row reaches."""


def find_prefix(ids: Tensor, real: Tensor, sop: int, blanks: Sequence[Sequence[int]]) -> Prefix:
    """Read the prompts' ends off the ids.

    Args:
        ids: (B, K).
        real: (B, K) bool, false at padding.
        sop: id of the token that begins the answer.
        blanks: ids of blank tokens, in groups; the first group that a prompt has counts, its first token.
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    begins = (ids == sop) & real
    start = torch.where(begins, places, NEVER).amin(1)
    inside = real & (places[None] < start[:, None])
    count = real.long().cumsum(1) - 1
    # A prompt without a blank is filled at its end.
    blank = torch.where(inside, count, 0).amax(1)
    has_blank = torch.zeros_like(start, dtype=torch.bool)
    for group in blanks:
        here = torch.isin(ids, torch.tensor(list(group), device=ids.device)) & inside
        first = torch.where(here, count, NEVER).amin(1)
        take = here.any(1) & ~has_blank
        blank, has_blank = torch.where(take, first, blank), has_blank | take
    return Prefix(start, blank)


def two_channels(prefix: Prefix, real: Tensor, first: int) -> Tensor:
    """Positions (B, 2, Q) of the tokens from place `first` on; 0 at padding.

    Args:
        prefix: from `find_prefix` over the beginning of the same rows.
        real: (B, K) bool over all keys.
        first: place of the first query.
    """
    places = torch.arange(real.shape[1], device=real.device)[None]
    answered = places >= prefix.start[:, None]
    count = (real.long().cumsum(1) - 1).clamp(min=0)
    zero = torch.zeros_like(count)
    channel_0 = torch.where(answered, prefix.blank[:, None], count)
    channel_1 = torch.where(answered, places - prefix.start[:, None] + 1, zero)
    both = torch.stack([torch.where(real, channel_0, zero), torch.where(real, channel_1, zero)], 1)
    return both[..., first:]


def said_by(positions: Tensor, prefix: Prefix) -> Prefix:
    """The same prompts with their ends as positions (B, 2, K) of whole rows say them, where these say something."""
    answered = positions[:, 1] > 0
    places = torch.arange(positions.shape[-1], device=positions.device)
    first = torch.where(answered, places, NEVER).amin(1)
    return Prefix(torch.where(answered.any(1), first, prefix.start), prefix.blank)


def ends_of_spans(positions: Tensor) -> Tensor:
    """(B, K) bool, the tokens of whole rows behind the prompt that only end a span (or are padding)."""
    answered = positions[:, 1] > 0
    return (answered.cumsum(1) > 0) & ~answered


def seen(shared: Tensor, real: Tensor, first: int) -> Tensor:
    """Who sees whom: (B, 1, Q, K) bool, true where the query sees the key.

    Args:
        shared: (B,) how many tokens at the beginning everybody sees.
        real: (B, K) bool.
        first: place of the first query.
    """
    places = torch.arange(real.shape[1], device=real.device)
    causal = places[None] <= places[first:, None]
    prompt = places[None] < shared[:, None]
    return ((causal[None] | prompt[:, None]) & real[:, None])[:, None]


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where true and the smallest number elsewhere: right under every attention implementation."""
    hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return hidden.masked_fill_(~visible, torch.finfo(dtype).min)
