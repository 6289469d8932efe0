"""Positions in two channels of rows with filled blanks, from what their trees carry (see `legacy.prefix`)."""

from __future__ import annotations

import torch
from torch import Tensor

from espalier.trees.batch import Batch
from espalier.trees.tree import BLANK


def channels(batch: Batch) -> Tensor:
    """(R, 2, T) positions of a padded batch whose trees carry `BLANK`.

    A trained token is read at its parent, so the parents are what a span is written from: ``<sop>`` and all tokens of
    the span. They stand at their blank in channel 0, and count from 1 in channel 1. Everything else is at its distance
    from the root, and 0.
    """
    assert batch.attention_mask is not None, "such rows are read both ways, which is no tree"
    at, where = batch.read_at, batch.extras[BLANK][batch.branch, batch.column].long()
    new = torch.ones_like(at, dtype=torch.bool)
    new[1:] = (at[1:] != at[:-1] + 1) | (batch.branch[1:] != batch.branch[:-1])
    number = torch.arange(len(at), device=at.device)
    first = torch.where(new, number, 0).cummax(0).values
    blank, place = batch.position_ids.clone(), torch.zeros_like(batch.position_ids)
    blank.view(-1)[at] = where
    place.view(-1)[at] = number - first + 1
    return torch.stack([blank, place], 1)
