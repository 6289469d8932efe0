"""How many numbers of a model are trained, by part; a model without memory (torch's meta device) will do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from espalier.models.adapters.freezing import blocks

PARTS = ("embeddings", "blocks", "adapters", "head", "others")
_OF_ADAPTERS = ("lora_", "ia3_", "prompt_encoder", "modules_to_save", "trainable_tokens")


@dataclass(frozen=True)
class Count:
    """Numbers of a part of a model: those that are trained, and all."""

    trained: int = 0
    total: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.trained + other.trained, self.total + other.total)


def counted(lm: nn.Module) -> dict[str, Count]:
    """The parts of `PARTS` that there are, in this order.

    Embeddings are those of tokens and of positions. A head that is tied to the embeddings is counted with them; what
    an adapter adds is no part of the blocks. What is stored in few bits is counted by its numbers.
    """
    inside = {id(p) for block in blocks(lm) for p in block.parameters()}
    table: Any = lm.get_input_embeddings()  # type: ignore[operator]
    embedding = {id(p) for p in table.parameters()}
    embedding |= {id(p) for m in lm.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    output: Any = lm.get_output_embeddings()  # type: ignore[operator]
    head = {id(p) for p in output.parameters()} - embedding if output is not None else set()
    config: Any = lm.config
    tied = bool(config.get_text_config().tie_word_embeddings) and output is not None
    found = dict.fromkeys(PARTS, Count())
    for name, parameter in lm.named_parameters():
        if tied and parameter is output.weight and parameter is not table.weight:
            continue  # the same weights, not yet tied in a model without memory
        part = "others"
        if any(mark in name for mark in _OF_ADAPTERS):
            part = "adapters"
        elif id(parameter) in inside:
            part = "blocks"
        elif id(parameter) in embedding:
            part = "embeddings"
        elif id(parameter) in head:
            part = "head"
        found[part] += Count(parameter.numel() * parameter.requires_grad, parameter.numel())
    return {part: count for part, count in found.items() if count.total}
