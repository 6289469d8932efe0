"""`generate` of transformers for models whose positions have two channels, and the memory between its steps."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from espalier.models.legacy.prefix import Prefix

_of_cache: WeakKeyDictionary[Cache, Prefix] = WeakKeyDictionary()


def remembered(cache: Cache | None, past: int, prefix: Prefix | None = None) -> Prefix | None:
    """Where the prompts in this cache end: told with the prompt pass, asked for at every later step.

    Args:
        cache: None remembers nothing.
        past: tokens that are in it; 0 asks for nothing.
        prefix: to remember.
    """
    if cache is None:
        return None
    if prefix is not None:
        _of_cache[cache] = prefix
        return prefix
    return _of_cache.get(cache) if past else None


class PrefixGeneration(GenerationMixin):
    """Hands on two-channel positions and whole masks that the caller gives, a step's share at a time.

    Without them, everything but the ids and a 2-D padding mask is left to the model.
    """

    masks_are_of_the_hidden = False
    """Whether true in a 4-D mask of this model means hidden; else it means seen."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        generation_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs of one step.

        Args:
            input_ids: (B, K), everything so far.
            attention_mask: (B, K), 1 = real.
            position_ids: (B, 2, at least L); (B, K) is not needed and left out.
            generation_attention_mask: (B, 1, at least L, at least L), 1 = seen; wins over `attention_mask`.
        """
        end = input_ids.shape[1]
        start = 0 if next_sequence_length is None else end - next_sequence_length
        inputs: dict[str, Any] = {
            "input_ids": input_ids[:, start:],
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "attention_mask": attention_mask,
        }
        if position_ids is not None and position_ids.dim() == 3:
            inputs["position_ids"] = continued(position_ids, end)[..., start:end]
        if generation_attention_mask is not None:
            rows = grown(generation_attention_mask.bool(), end)[:, :, start:end, :end]
            inputs["attention_mask"] = ~rows if self.masks_are_of_the_hidden else rows
        return inputs

    def generate(self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """As transformers', and a prompt's own mask (B, 1, L, L), in the model's sense, is taken too."""
        if attention_mask is not None and attention_mask.dim() == 4:
            visible = attention_mask.bool()
            kwargs["generation_attention_mask"] = ~visible if self.masks_are_of_the_hidden else visible
            attention_mask = torch.ones_like(visible[:, 0, -1], dtype=torch.int64)
        if attention_mask is not None:
            kwargs["attention_mask"] = attention_mask
        return super().generate(*args, **kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        positions = model_kwargs.get("position_ids")
        found = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        # Transformers counts both channels on; `continued` knows which one counts.
        return found if positions is None else found | {"position_ids": positions}

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, position_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Transformers takes the second axis of three-axis positions for the rows; here it is the first."""
        input_ids, others = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        if position_ids is not None:
            others["position_ids"] = position_ids.repeat_interleave(expand_size, dim=0)
        return input_ids, others


def continued(positions: Tensor, length: int) -> Tensor:
    """(B, 2, L) grown to (B, 2, length): the first channel stays, the second counts on."""
    missing = length - positions.shape[-1]
    if missing <= 0:
        return positions
    more = torch.arange(1, missing + 1, device=positions.device)
    last = positions[..., -1:].expand(-1, -1, missing)
    return torch.cat([positions, torch.stack([last[:, 0], last[:, 1] + more], 1)], -1)


def grown(visible: Tensor, length: int) -> Tensor:
    """A square mask (B, 1, L, L), true = seen, grown to `length` tokens.

    A new token sees what the last one did, and the new ones up to itself.
    """
    size = visible.shape[-1]
    missing = length - size
    if missing <= 0:
        return visible
    found = visible.new_zeros((*visible.shape[:2], length, length))
    found[..., :size, :size] = visible
    found[..., size:, :size] = visible[..., -1:, :]
    found[..., size:, size:] = torch.ones_like(found[..., size:, size:]).tril()
    return found
