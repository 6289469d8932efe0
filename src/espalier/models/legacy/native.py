"""What our own old architectures share: how they are called, how they call attention, and what they can do.

They follow transformers' calling convention (`PreTrainedModel`, its caches, its attention implementations), so that
training, sampling, adapters and tree attention treat them as any other model. A family's module says what differs: its
sizes, its blocks, and how they read (`NativeModel.read`).

B rows, T tokens, d hidden, H heads, D numbers a head, V vocabulary.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from espalier.models.positions.own import OwnPositions


class NativeConfig(OwnPositions, PreTrainedConfig):
    """Sizes and special ids that every one of them has; a family's own defaults stand in its class."""

    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    max_position_embeddings: int = 0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True


class Given(NamedTuple):
    """What a forward was given beside the embeddings (B, Q, d), in the forms that the family takes.

    Attributes:
        input_ids: (B, Q), or None where embeddings alone were given.
        attention_mask: 1 = real (B, K), who sees whom (B, 1, Q, K), or None for all.
        position_ids: (B, Q), or of two channels (B, 2, Q); None to count them.
        cache: what was read before, or None.
    """

    input_ids: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor | None
    cache: Cache | None

    def places(self, hidden: Tensor) -> Tensor:
        """(1, Q): the places of the embeddings in the row, counted on from the cache."""
        past = 0 if self.cache is None else self.cache.get_seq_length()
        return torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    **kwargs: Any,
) -> Tensor:
    """Attention by the implementation that the model is set to, over what the cache holds and these keys.

    Args:
        module: with ``config``, ``scaling`` (of the scores), ``layer_idx``, ``num_key_value_groups`` and ``is_causal``.
        query: (B, H, Q, D).
        key, value: (B, K, T, D); they are added to the cache.
        attention_mask: (B, 1, Q, T) added to the scores (or boolean, true where seen), or None for causal.
        past_key_values: the cache; None for none.

    Returns:
        (B, Q, H, D).
    """
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, module.layer_idx)
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention_forward
    )
    mixed: Tensor = implementation(
        module, query, key, value, attention_mask, scaling=module.scaling, **kwargs
    )[0]
    return mixed


def heads_first(x: Tensor, size: int) -> Tensor:
    """(B, T, H * D) to (B, H, T, D)."""
    return x.view(*x.shape[:-1], -1, size).transpose(1, 2)


def projected(module: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, T, D) of an attention with `q_proj`, `k_proj` and `v_proj`."""
    query, key, value = (
        heads_first(layer(hidden), module.head_dim) for layer in (module.q_proj, module.k_proj, module.v_proj)
    )
    return query, key, value


class NativeAttention(nn.Module):
    """What `attend` asks of an attention without groups."""

    def __init__(self, config: NativeConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups, self.is_causal = 1, True


class FusedAttention(NativeAttention):
    """One matrix for queries, keys and values, and one behind; both with biases."""

    def __init__(self, config: NativeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)


class NativeMLP(nn.Module):
    """Out to the inner width and back; both with biases."""

    def __init__(self, size: int, inner: int, activation: str) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(size, inner)
        self.dense_4h_to_h = nn.Linear(inner, size)
        self.act = ACT2FN[activation]

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.dense_4h_to_h(self.act(self.dense_h_to_4h(hidden)))
        return out


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


class NativeModel(Native):
    """The model below its output layer; a family's class has embeddings and blocks, and `read`."""

    cache_class: ClassVar[type[DynamicCache]] = DynamicCache
    gradient_checkpointing = False

    # Decorators of transformers, without types.
    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, T, d) of ids (B, T) or embeddings (B, T, d), as transformers' models give them."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is wanted")
        hidden = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = self.cache_class(config=self.config)
        given = Given(input_ids, attention_mask, position_ids, past_key_values)
        hidden = self.read(hidden, given, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)

    def read(self, hidden: Tensor, given: Given, **kwargs: Any) -> Tensor:
        """Embeddings (B, T, d) through all blocks and the last norm."""
        raise NotImplementedError


class NativeForCausalLM(Native, GenerationMixin):
    """A model with its output layer."""

    model_class: ClassVar[type[NativeModel]]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), and the loss of `labels` (B, T) as the family's `loss_of` has it.

        Args:
            logits_to_keep: logits of the last so many places alone (0: all), or of the places (n,).
            kwargs: what else `NativeModel.read` of the family takes.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, places])
        return CausalLMOutputWithPast(
            loss=None if labels is None else self.loss_of(logits, labels),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of `labels` (B, T), shifted, where -100 counts nothing."""
        loss: Tensor = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return loss

    def _without_padding(self, labels: Tensor) -> Tensor:
        """Labels whose padding ids count nothing."""
        padding = self.config.pad_token_id
        return labels if padding is None else labels.masked_fill(labels == padding, -100)
