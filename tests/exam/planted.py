"""A language model that knows some texts by heart and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from espalier.models.forward import TreeModel
from espalier.models.probe import probe

_SLOTS = 64  # ways that a text may go on


class _Known(nn.Module):
    """Hidden states are the ids that may come next; their logits are 20, all others 0."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(*hidden.shape[:-1], self.vocabulary + 1)
        return logits.scatter(-1, hidden.long().clamp(0, self.vocabulary), 20.0)[..., : self.vocabulary]


class PlantedLM(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, vocabulary: int, texts: Iterable[list[int]]) -> None:
        super().__init__(PretrainedConfig(vocab_size=vocabulary, max_position_embeddings=100_000))
        self.config.model_type = "planted"
        self.embed = nn.Embedding(1, 1)
        self.head = _Known(vocabulary)
        self.tree: dict[int, Any] = {}
        for ids in texts:
            node = self.tree
            for token in ids:
                node = node.setdefault(token, {})

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> CausalLMOutput:
        hidden = torch.full((*input_ids.shape, _SLOTS), float(self.config.vocab_size))
        for row, ids in enumerate(input_ids.tolist()):
            node: dict[int, Any] | None = self.tree
            for at, token in enumerate(ids):
                if attention_mask is not None and not attention_mask[row, at]:
                    continue
                node = None if node is None else node.get(token)
                for slot, following in enumerate(node or {}):
                    hidden[row, at, slot] = following
        return CausalLMOutput(logits=self.head(hidden))


def planted(vocabulary: int, texts: Iterable[list[int]]) -> TreeModel:
    """A model to which each text's next token is far the likeliest after its beginning."""
    lm = PlantedLM(vocabulary, texts)
    return TreeModel(lm, probe(lm, wanted="padded")).eval()
