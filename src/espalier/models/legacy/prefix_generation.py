"""Inputs of models whose positions have two channels, in `forward` and in transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from espalier.models.legacy.native import Given
from espalier.models.legacy.notes import note, noted
from espalier.models.legacy.prefix import (
    NEVER,
    Prefix,
    additive,
    ends_of_spans,
    find_prefix,
    said_by,
    seen,
    two_channels,
)


def positions_and_mask(
    inputs: Given,
    embeds: Tensor,
    *,
    sop: int,
    blanks: Sequence[Sequence[int]],
    masks_are_of_the_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """What a forward is given, completed: positions (B, 2, Q), and a mask (B, 1, Q, K) to add to the scores.

    Args:
        inputs: without input_ids (embeddings alone) no prompt is seen, so that all is causal. The attention_mask is
            None; how many tokens everybody sees (1-D, one number for all or one for each row); 1 = real (B, K); or
            who sees whom (B, 1, Q, K), of integers or booleans in the model's sense, of floats to be added. The
            position_ids are (B, 2, Q), or anything else to have them read off the ids; of rows with several
            filled blanks they say where these begin and end (`ends_of_spans`). Where the prompts of earlier
            steps end is kept with the cache.
        embeds: (B, Q, d).
        sop, blanks: ids, see `find_prefix`.
        masks_are_of_the_hidden: the model's sense: 1 or true means hidden, not seen.

    Raises:
        ValueError: a mask of floats without two-channel positions, as trees in one row would have it.
    """
    _, attention_mask, position_ids, cache = inputs
    past = 0 if cache is None else cache.get_seq_length()
    rows, width = embeds.shape[:2]
    given = position_ids is not None and position_ids.dim() == 3
    whole = position_ids if given and not past else None
    real = torch.ones(rows, past + width, dtype=torch.bool, device=embeds.device)
    visible = None
    if attention_mask is not None and attention_mask.dim() == 4:
        if attention_mask.is_floating_point():
            if not given:
                raise ValueError("prompts that are read both ways cannot be trees in a row: layout: padded")
            assert position_ids is not None
            return position_ids, attention_mask
        visible = attention_mask.bool()
        visible = ~visible if masks_are_of_the_hidden else visible
    elif attention_mask is not None and attention_mask.dim() < 2:
        visible = seen(attention_mask.reshape(-1).expand(rows), real, past)
    elif attention_mask is not None:
        real = attention_mask.bool()
    prefix = None
    if visible is None:
        prefix = _prefix(inputs, real, whole, sop, blanks)
        visible = seen(prefix.shared, real, past)
        if whole is not None:
            visible = visible & ~ends_of_spans(whole)[:, None, None]
    if not given:
        none = torch.full((rows,), NEVER, device=embeds.device)
        position_ids = two_channels(prefix or Prefix(none, none), real, past)
    assert position_ids is not None
    return position_ids, additive(visible, embeds.dtype)


def _prefix(
    inputs: Given, real: Tensor, whole: Tensor | None, sop: int, blanks: Sequence[Sequence[int]]
) -> Prefix:
    """Where the prompts end: as noted with the cache, as positions of whole rows say, or by the marks in the ids."""
    start, blank = noted(inputs.cache, "start"), noted(inputs.cache, "blank")
    if start is not None and blank is not None:
        return Prefix(start, blank)
    ids = torch.full_like(real, -1, dtype=torch.int64) if inputs.input_ids is None else inputs.input_ids
    prefix = find_prefix(ids, real[:, -ids.shape[1] :], sop, blanks)
    prefix = prefix if whole is None else said_by(whole, prefix)
    note(inputs.cache, start=prefix.start, blank=prefix.blank)
    return prefix


class PrefixGeneration(GenerationMixin):
    """Hands on two-channel positions and whole masks that the caller gives, a step's share at a time.

    Without them, everything but the ids and a 2-D padding mask is left to the model.
    """

    masks_are_of_the_hidden = False
    """Whether true in a 4-D mask of this model means hidden; else it means seen."""

    def prepare_inputs_for_generation(  # type: ignore[override]
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
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        positions = model_kwargs.get("position_ids")
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        # Transformers counts both channels on; `continued` knows which one counts.
        return updated if positions is None else updated | {"position_ids": positions}

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, position_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Transformers takes the second axis of three-axis positions for the rows; here it is the first."""
        input_ids, others = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size, **kwargs
        )
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
    larger = visible.new_zeros((*visible.shape[:2], length, length))
    larger[..., :size, :size] = visible
    larger[..., size:, :size] = visible[..., -1:, :]
    larger[..., size:, size:] = torch.ones_like(larger[..., size:, size:]).tril()
    return larger
