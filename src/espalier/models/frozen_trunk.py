"""The lowest blocks that several models have in common and nobody trains, run once for all of them.

A policy whose lower blocks are frozen, its reference and its critic say the same up to the first block that differs;
what goes into that block is kept for the models that are asked about the same batch next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

PLAIN = {"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"}
"""transformers' decoders whose blocks see nothing of the embeddings but what the block before hands on."""


class FrozenTrunk:
    """The states between common blocks and own ones, of the batch that was asked about last.

    Args:
        depth: how many blocks are common.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._ids: Tensor | None = None
        self._states: Tensor | None = None

    @contextmanager
    def serving(self, lm: nn.Module, input_ids: Tensor) -> Iterator[dict[str, Tensor]]:
        """What the model is to be given inside the block, where it either runs whole and its states are kept, or runs
        its own blocks alone.

        Args:
            lm: one of the models.
            input_ids: (R, T) of a batch; the very tensor says which.
        """
        decoder = decoder_of(lm)
        assert decoder is not None
        blocks: Any = decoder.layers
        if self._ids is not input_ids or self._states is None:
            self._ids, self._states = None, None

            def keep(_module: nn.Module, _given: Any, made: Any) -> None:
                self._ids, self._states = input_ids, (made[0] if isinstance(made, tuple) else made).detach()

            handle = blocks[self.depth - 1].register_forward_hook(keep)
            try:
                yield {"input_ids": input_ids}
            finally:
                handle.remove()
            return
        decoder.layers = blocks[self.depth :]
        try:
            yield {"inputs_embeds": self._states}
        finally:
            decoder.layers = blocks


def decoder_of(lm: nn.Module) -> Any:
    """The module with ``layers`` and ``embed_tokens``; None where blocks cannot be left out."""
    found: Any = next((module for module in lm.modules() if type(module).__name__ in PLAIN), None)
    if found is None or not type(found).__module__.startswith("transformers.models."):
        return None
    kinds = getattr(found.config, "layer_types", None) or ["full_attention"]
    return found if len(set(kinds)) == 1 else None


def common_depth(models: Sequence[nn.Module]) -> int:
    """How many of the lowest blocks, the embeddings below them included, are one set of frozen weights in all models."""
    decoders = [decoder_of(model) for model in models]
    if len(models) < 2 or any(decoder is None for decoder in decoders):
        return 0
    if not _one([decoder.embed_tokens for decoder in decoders]):
        return 0
    depth = 0
    for blocks in zip(*(decoder.layers for decoder in decoders), strict=False):
        if not _one(blocks):
            break
        depth += 1
    return depth


def _one(modules: Sequence[nn.Module]) -> bool:
    """Whether modules are made of the very same frozen weights."""
    first = list(modules[0].parameters())
    return not any(p.requires_grad for p in first) and all(
        len(first) == len(mine := list(module.parameters()))
        and all(p is q for p, q in zip(first, mine, strict=True))
        for module in modules[1:]
    )
