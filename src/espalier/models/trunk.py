"""Keys and values of a text that many rows of trees go on from, such as an exam's solved examples.

The trunk is read once. A later row holds only what follows it: its tokens attend to the trunk whole and to
their own row by the rule of trees, and the two parts are merged by their log-sum-exps, which is exactly the
softmax over both. Without gradients.

P tokens of the trunk, T of a row, H query heads, K key heads, D numbers a head.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from espalier.models.memory import KeptLayer, attention_over


class Trunk(Cache):
    """A cache in transformers' convention: the first forward fills it, later ones read it."""

    def __init__(self, layers: int, length: int) -> None:
        super().__init__(layers=[_Layer(self) for _ in range(layers)])
        self.length = length
        self.filled = False
        self.layer: _Layer | None = None

    def attend(self, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """What the present layer's trunk gives to the queries: (1, H, T, D), and log-sum-exps (1, H, T).

        Args:
            query: (1, H, T, D).
            scale: of the scores.
        """
        layer = self.layer
        assert layer is not None and layer.keys is not None and layer.values is not None
        _, heads, length, size = query.shape
        kinds = layer.keys.shape[1]
        # Query heads of one key head stand as queries of that head: nothing is repeated.
        grouped = query.reshape(1, kinds, heads // kinds * length, size)
        out, lse = attention_over(grouped, layer.keys, layer.values, None, scale)
        return out.reshape(1, heads, length, -1), lse.reshape(1, heads, length)


class _Layer(KeptLayer):
    """The keys and values (1, K, P, D) of one layer."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep the trunk's; of a later row give back its own alone, as `attend` adds the trunk's part."""
        self.trunk.layer = self
        if not self.trunk.filled:
            self.keys, self.values = key_states.contiguous(), value_states.contiguous()
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.trunk.length if self.trunk.filled else 0


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """The softmax over the keys of both parts, each given as (..., D) and its log-sum-exps (...)."""
    weight = torch.sigmoid(first[1] - second[1])[..., None].to(first[0].dtype)
    return torch.lerp(second[0], first[0], weight)
