"""Noise on the input embeddings in training (NEFTune, Jain et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from espalier.trees.batch import Batch


def path_lengths(batch: Batch) -> Tensor:
    """(R, T) float: for each token the length of the longest path of its tree, which is the whole of a plain record."""
    roots = batch.position_ids == 0
    if batch.attention_mask is not None:
        roots &= batch.attention_mask
    tree = roots.cumsum(1)
    lengths = torch.zeros(tree.shape[0], int(tree.max()) + 1, device=tree.device)
    depth = (batch.position_ids + 1).float()
    return lengths.scatter_reduce(1, tree, depth, "amax").gather(1, tree)


@contextmanager
def noisy_embeddings(lm: Any, batch: Batch, alpha: float) -> Iterator[None]:
    """Inside, the input embeddings of the batch come with noise, uniform in ±alpha / sqrt(L d).

    L is the length of the token's sequence (in a tree: of its longest path) and d the size of an embedding. A prompt
    that several answers share has one noise for all of them. The numbers are torch's global generator's, whose state a
    checkpoint keeps.
    """
    embeddings: nn.Module = lm.get_input_embeddings()

    def add(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        size = alpha / (path_lengths(batch) * output.shape[-1]).sqrt()
        return output + (2 * torch.rand_like(output) - 1) * size[..., None].to(output.dtype)

    handle = embeddings.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
