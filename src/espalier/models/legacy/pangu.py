"""PanGu-alpha (Zeng et al. 2021), 350M, 2.6B and 13B: GPT-2 blocks with a *query layer* on top.

The last block asks with rows of a third embedding table, one a position, instead of with what it has read;
the final norm stands before that block, not after it. A mask of integers is a mask as everywhere else (the
original adds it to the scores as it is, so that pads are seen).

B rows, T tokens, d hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from espalier.models.legacy.conversion import Conversion, Named, needed, taken, token_ids
from espalier.models.legacy.native import Native, attend, heads_first, kept


class PanguConfig(PreTrainedConfig):
    """Sizes of a PanGu-alpha model; `intermediate_size` None is 4 * hidden_size."""

    model_type = "espalier_pangu"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 40000
    hidden_size: int = 2560
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    activation_function: str = "gelu"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 9
    pad_token_id: int | None = 6
    tie_word_embeddings: bool = True


class PanguAttention(nn.Module):
    """Queries may come from elsewhere than keys and values."""

    def __init__(self, config: PanguConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        self.num_key_value_groups, self.is_causal = 1, True
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden: Tensor,
        asking: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        query = heads_first(self.q_proj(asking), self.head_dim)
        key = heads_first(self.k_proj(hidden), self.head_dim)
        value = heads_first(self.v_proj(hidden), self.head_dim)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        found = attend(self, query, key, value, attention_mask, self.scaling, **kwargs)
        return self.c_proj(found.reshape(hidden.shape))


class PanguMLP(nn.Module):
    def __init__(self, config: PanguConfig) -> None:
        super().__init__()
        inner = config.intermediate_size or 4 * config.hidden_size
        self.c_fc = nn.Linear(config.hidden_size, inner)
        self.c_proj = nn.Linear(inner, config.hidden_size)
        self.act = ACT2FN[config.activation_function]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(hidden)))


class PanguBlock(GradientCheckpointingLayer):
    """An ordinary block, or the query layer where `asking` is given."""

    def __init__(self, config: PanguConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = PanguAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = PanguMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        asking: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        normed = self.ln_1(hidden_states)
        asking = normed if asking is None else asking
        hidden_states = hidden_states + self.attn(normed, asking, attention_mask, past_key_values, **kwargs)
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class PanguPreTrainedModel(Native):
    config_class = PanguConfig
    config: PanguConfig
    _input_embed_layer = "wte"
    _no_split_modules = ["PanguBlock"]
    _can_record_outputs = {"hidden_states": PanguBlock}


class PanguModel(PanguPreTrainedModel):
    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.wqe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(PanguBlock(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is wanted")
        hidden: Tensor = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        hidden = hidden + self.wpe(position_ids)
        if token_type_ids is not None:
            hidden = hidden + self.wte(token_type_ids)
        for block in self.h[:-1]:
            hidden = block(hidden, None, mask, past_key_values=past_key_values, **kwargs)
        hidden = self.ln_f(hidden)
        asking = self.wqe(position_ids).expand_as(hidden)
        hidden = self.h[-1](hidden, asking, mask, past_key_values=past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)  # type: ignore[arg-type]


class PanguForCausalLM(PanguPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config)
        self.transformer = PanguModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), and the loss of `labels` (B, T), where -100 and the padding id count nothing."""
        found = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(kept(found.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            if self.config.pad_token_id is not None:
                labels = labels.masked_fill(labels == self.config.pad_token_id, -100)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
        )


def pangu(old: Mapping[str, Any]) -> Conversion:
    """PanGu-alpha keeps its names; the tables of its causal mask are left out."""
    settings = {
        **taken(old, "vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"),
        **taken(old, "activation_function", "layer_norm_epsilon", "scale_attn_weights", "initializer_range"),
        **token_ids(old, bos_token_id=1, eos_token_id=9, pad_token_id=6),
        "num_hidden_layers": needed(old, "num_layers", "num_hidden_layers"),
        "num_attention_heads": needed(old, "num_heads", "num_attention_heads"),
    }

    def place(name: str, tensor: Tensor) -> Named:
        return [] if name.endswith((".attn.bias", ".attn.masked_bias")) else [(name, tensor)]

    return Conversion(PanguConfig(**settings), PanguForCausalLM, place)
