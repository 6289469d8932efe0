"""Sampling through transformers' own cache, for models that cannot share a memory of ours.

P prompts, C copies of each, B rows, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from espalier.models.adapters.virtual import virtual_tokens
from espalier.models.positions.rope_modules import answering


def keeps_last_logits(lm: nn.Module) -> bool:
    """Whether the model gives the logits of the last place alone on request; else it makes those of all places."""
    return "logits_to_keep" in inspect.signature(lm.forward).parameters


class ByOwnCache:
    """Any other architecture: left-padded rows and transformers' own cache.

    All rows of that cache begin at one place, so none can come when others have gone on: the prompts are
    sampled batch by batch.
    """

    def __init__(self, lm: nn.Module, prompts: Sequence[Sequence[int]], copies: int) -> None:
        self.lm = lm
        self.cache: Any = None
        device = next(lm.parameters()).device
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        self.ids = ids.repeat_interleave(copies, 0).to(device)
        self.mask = mask.repeat_interleave(copies, 0).to(device)
        self.prompts = self.mask.sum(1)
        self.keeps_last = keeps_last_logits(lm)
        self.takes_positions = "position_ids" in inspect.signature(lm.forward).parameters

    def prompt_logits(self) -> Tensor:
        return self._run(self.ids, (self.mask.cumsum(1) - 1).clamp(min=0))

    def next_logits(self, tokens: Tensor, step: int) -> Tensor:
        positions = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        return self._run(tokens[:, None], positions)

    def _run(self, ids: Tensor | None, positions: Tensor, **given: Tensor) -> Tensor:
        extra: dict[str, Any] = {**given, **({"position_ids": positions} if self.takes_positions else {})}
        extra |= {"logits_to_keep": 1} if self.keeps_last else {}
        with answering(self.prompts):
            out: Any = self.lm(
                input_ids=ids, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **extra
            )
        self.cache = out.past_key_values
        logits: Tensor = out.logits[:, -1]
        return logits

    def keep(self, rows: Tensor) -> bool:
        if not isinstance(self.cache, DynamicCache):
            return False
        rows = rows.to(self.mask.device)
        self.cache.batch_select_indices(rows)
        self.mask, self.prompts = self.mask[rows], self.prompts[rows]
        return True


class AfterVirtual(ByOwnCache):
    """The same after a model's virtual tokens: embeddings of each row's own, or keys and values in the cache."""

    def __init__(self, lm: Any, prompts: Sequence[Sequence[int]], copies: int) -> None:
        virtual = virtual_tokens(lm)
        assert virtual is not None
        places = virtual.length - virtual.ahead  # that take part in the prompt's rows
        super().__init__(lm.base_model, [[0] * places + list(prompt) for prompt in prompts], copies)
        self.virtual, self.places = virtual, places
        if virtual.ahead:
            dtype = next(lm.parameters()).dtype
            self.cache = virtual.dynamic_cache(len(self.ids), dtype, lm.config)
            self.mask = torch.nn.functional.pad(self.mask, (virtual.ahead, 0), value=1)

    def prompt_logits(self) -> Tensor:
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, self.virtual.ahead :]
        if self.virtual.embeddings is None:
            return self._run(self.ids, positions)
        embedded = self.lm.get_input_embeddings()(self.ids)  # type: ignore[operator]
        learned = self.mask.bool() & (positions < self.places)
        own = self.virtual.embeddings.to(embedded.dtype).repeat(len(self.ids), 1)
        return self._run(None, positions, inputs_embeds=embedded.masked_scatter(learned[..., None], own))


class Apart:
    """Each prompt read and continued by itself, after the model's virtual tokens, so that no row is padded.

    Batch by batch: the caches of the prompts go on at one pace.
    """

    def __init__(self, lm: Any, prompts: Sequence[Sequence[int]], copies: int) -> None:
        self.copies = copies
        self.each = [AfterVirtual(lm, [prompt], copies) for prompt in prompts]

    def prompt_logits(self) -> Tensor:
        return torch.cat([one.prompt_logits() for one in self.each])

    def next_logits(self, tokens: Tensor, step: int) -> Tensor:
        parts = zip(self.each, torch.split(tokens, self.copies), strict=True)
        return torch.cat([one.next_logits(part, step) for one, part in parts])

    def keep(self, rows: Tensor) -> bool:
        return False
