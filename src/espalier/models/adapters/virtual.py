"""Virtual tokens: learned embeddings, or learned keys and values, that stand before every text.

Prompt tuning (Lester et al. 2021) and p-tuning (Liu et al. 2021) put n learned embeddings before a row, prefix tuning
(Li & Liang 2021) n learned keys and values into each layer. In a row of trees they are the root of every tree, in a
padded row its beginning: `trees.batch.under_root` says where everything stands then, and both layouts go through the
same few lines of the forward. PEFT's own forward knows neither trees nor where to read, and is not used.

R rows, n virtual tokens, d hidden, K key heads, D numbers a head.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from espalier.models.memory import KeptLayer


@dataclass(frozen=True)
class Virtual:
    """What a model's virtual tokens are at this moment, with gradients where they are trained.

    Attributes:
        length: n.
        embeddings: (n, d), or None.
        layers: each layer's keys and values (K, n, D), or None.
    """

    length: int
    embeddings: Tensor | None
    layers: list[tuple[Tensor, Tensor]] | None

    @property
    def ahead(self) -> int:
        """How many keys stand before a row's own that no query belongs to."""
        return 0 if self.layers is None else self.length

    def before(self, embedded: Tensor) -> Tensor:
        """(R, T, d) of tokens to (R, n + T, d)."""
        assert self.embeddings is not None
        own = self.embeddings.to(embedded.dtype).expand(len(embedded), -1, -1)
        return torch.cat([own, embedded], 1)

    def cache(self, rows: int, dtype: torch.dtype) -> Cache:
        """A cache that puts the learned keys and values before those of each layer, and keeps nothing."""
        assert self.layers is not None
        return _Prefix([(k.to(dtype), v.to(dtype)) for k, v in self.layers], rows)

    def dynamic_cache(self, rows: int, dtype: torch.dtype, config: Any) -> DynamicCache:
        """Transformers' growing cache for a model of `config`, with the learned keys and values in it; for sampling."""
        assert self.layers is not None
        cache = DynamicCache(config=config)
        for i, pair in enumerate(self.layers):
            key, value = (x.to(dtype).expand(rows, -1, -1, -1) for x in pair)
            cache.update(key, value, i)
        return cache


def has_virtual_tokens(lm: nn.Module) -> bool:
    """Whether the model's active adapter is one of virtual tokens, and is switched on."""
    return (
        isinstance(lm, PeftModel)
        and bool(lm.active_peft_config.is_prompt_learning)
        and not lm._adapters_disabled
    )


def virtual_tokens(lm: nn.Module) -> Virtual | None:
    """The model's virtual tokens, or None."""
    if not has_virtual_tokens(lm):
        return None
    peft: Any = lm
    settings = peft.active_peft_config
    encoder = peft.prompt_encoder[peft.active_adapter]
    length = int(settings.num_virtual_tokens)
    places = torch.arange(length, device=encoder.embedding.weight.device)[None]
    # A folder holds what the encoder made of the places, and not the encoder.
    made = (encoder.embedding(places) if settings.inference_mode else encoder(places))[0]
    if settings.peft_type != PeftType.PREFIX_TUNING:
        return Virtual(length, made, None)
    heads = int(settings.num_attention_heads)
    each = made.view(length, settings.num_layers, 2, heads, -1).permute(1, 2, 3, 0, 4)
    return Virtual(length, None, [(layer[0], layer[1]) for layer in each])


class _Prefix(Cache):
    def __init__(self, layers: list[tuple[Tensor, Tensor]], rows: int) -> None:
        super().__init__(layers=[_PrefixLayer(key, value, rows) for key, value in layers])


class _PrefixLayer(KeptLayer):
    def __init__(self, key: Tensor, value: Tensor, rows: int) -> None:
        super().__init__()
        self.keys, self.values = key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return (
            torch.cat([self.keys.to(key_states.dtype), key_states], 2),
            torch.cat([self.values.to(value_states.dtype), value_states], 2),
        )

    def get_seq_length(self) -> int:
        assert self.keys is not None
        return self.keys.shape[2]
