"""What our own old architectures share: how they call attention, and what they can do.

They follow transformers' calling convention (`PreTrainedModel`, its caches, its attention implementations),
so that training, sampling, adapters and tree attention treat them as any other model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> Tensor:
    """Attention by the implementation that the model is set to.

    Args:
        module: with ``config``, ``num_key_value_groups`` and ``is_causal``.
        query: (B, H, Q, D).
        key, value: (B, K, T, D).
        attention_mask: (B, 1, Q, T) added to the scores (or boolean, true where seen), or None for causal.
        scaling: factor of the scores.

    Returns:
        (B, Q, H, D).
    """
    config: Any = module.config
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(
        config._attn_implementation, eager_attention_forward
    )
    found, _ = implementation(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return found


def heads_first(x: Tensor, size: int) -> Tensor:
    """(B, T, H * D) to (B, H, T, D)."""
    return x.view(*x.shape[:-1], -1, size).transpose(1, 2)


def kept(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The states that logits are wanted of.

    Args:
        hidden: (B, T, d).
        logits_to_keep: the last so many places (0: all), or the places themselves (n,).
    """
    places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return hidden[:, places]


class Native(PreTrainedModel):
    """The base of our own models: what every one of them can do."""

    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Yes; transformers would look for the words in the module's source, and they are in `attend`."""
        return True
