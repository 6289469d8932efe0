"""What virtual tokens begin as: the embeddings, or the keys and values, of a text or of random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import UserError


def first_ids(lm: nn.Module, tokens: int, text: Sequence[int] | None) -> Tensor:
    """(1, n) ids that virtual tokens begin as."""
    if text:
        ids = (list(text) * (tokens // len(text) + 1))[:tokens]
        return torch.tensor([ids], device=next(lm.parameters()).device)
    rows = lm.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    return torch.randint(rows, (1, tokens)).to(next(lm.parameters()).device)


@torch.no_grad()
def embedded(lm: nn.Module, ids: Tensor) -> Tensor:
    rows: Tensor = lm.get_input_embeddings()(ids)[0]  # type: ignore[operator]
    return rows


@torch.no_grad()
def keys_values(lm: nn.Module, ids: Tensor) -> Tensor:
    """(L, 2, K, n, D): what each layer keeps of these tokens."""
    training = lm.training
    lm.eval()
    try:
        cache: Any = lm(input_ids=ids, use_cache=True).past_key_values
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
        return torch.stack([torch.cat([key, value]) for key, value in pairs])
    except (AttributeError, RuntimeError, TypeError) as error:
        raise UserError(
            f"finetuning_type: prefix is not possible with {type(lm).__name__}: its layers do not keep keys and "
            "values of one shape. Use lora, ia3, or prompt."
        ) from error
    finally:
        lm.train(training)


@torch.no_grad()
def begin(made: Any, start: Tensor) -> None:
    weight = made.prompt_encoder[made.active_adapter].embedding.weight
    weight.copy_(start.to(weight.dtype))
