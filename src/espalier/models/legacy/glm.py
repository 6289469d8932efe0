"""GLM-chinese (Du et al. 2022), 335M and 10B: a prefix language model with positions in two channels.

Masks as the original takes them: None, the length of the prompt for all rows or one for each (1-D), or 0/1
masks (B, 1, Q, K) of integers or booleans. What it does not do: a 2-D mask is a padding mask here, as
everywhere in transformers (in the original it lets every token see its own successor); with it the prompt is
read off the ids, see `espalier.models.legacy.prefix`.

B rows, T tokens, d hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from espalier.models.legacy.conversion import Conversion, Named, needed, refuse, taken
from espalier.models.legacy.native import Native, attend, heads_first, kept
from espalier.models.legacy.notes import NotedCache
from espalier.models.legacy.prefix_generation import PrefixGeneration, positions_and_mask


class GLMChineseConfig(PreTrainedConfig):
    """Sizes and special ids of a GLM; `blank_token_ids` are [MASK], [sMASK] and [gMASK]."""

    model_type = "espalier_glm"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 50048
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    max_position_embeddings: int = 1024
    block_position_encoding: bool = True
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 50006
    eos_token_id: int | list[int] | None = 50007
    pad_token_id: int | None = 50000
    cls_token_id: int = 50002
    blank_token_ids: list[int] | tuple[int, ...] = (50003, 50008, 50009)
    tie_word_embeddings: bool = True


class GLMChineseBlock(GradientCheckpointingLayer):
    """Norm, attention, norm, MLP; all with biases, the inner size four times the outer."""

    def __init__(self, config: GLMChineseConfig, layer_idx: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_epsilon
        self.input_layernorm = nn.LayerNorm(size, eps=eps)
        self.attention = GLMChineseAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(size, eps=eps)
        self.mlp = GLMChineseMLP(size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        normed = self.input_layernorm(hidden_states)
        hidden_states = hidden_states + self.attention(normed, attention_mask, past_key_values, **kwargs)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class GLMChineseAttention(nn.Module):
    def __init__(self, config: GLMChineseConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups, self.is_causal = 1, True
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None, past_key_values: Cache | None, **kwargs: Any
    ) -> Tensor:
        query, key, value = (
            heads_first(x, self.head_dim) for x in self.query_key_value(hidden).chunk(3, dim=-1)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        found = attend(self, query, key, value, attention_mask, self.scaling, **kwargs)
        return self.dense(found.reshape(hidden.shape))


class GLMChineseMLP(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(size, 4 * size)
        self.dense_4h_to_h = nn.Linear(4 * size, size)
        self.act = ACT2FN["gelu"]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.act(self.dense_h_to_4h(hidden)))


class GLMChinesePreTrainedModel(Native):
    config_class = GLMChineseConfig
    config: GLMChineseConfig
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ["GLMChineseBlock"]
    _can_record_outputs = {"hidden_states": GLMChineseBlock}


class GLMChineseModel(GLMChinesePreTrainedModel):
    def __init__(self, config: GLMChineseConfig) -> None:
        super().__init__(config)
        size, rows = config.hidden_size, config.max_position_embeddings
        self.word_embeddings = nn.Embedding(config.vocab_size, size)
        if config.block_position_encoding:
            self.position_embeddings = nn.Embedding(rows + 1, size)
            self.block_position_embeddings = nn.Embedding(rows + 1, size)
        else:
            self.position_embeddings = nn.Embedding(rows, size)
        self.layers = nn.ModuleList(GLMChineseBlock(config, i) for i in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
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
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is wanted")
        hidden: Tensor = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = NotedCache(config=self.config)
        positions, mask = positions_and_mask(
            input_ids,
            hidden,
            attention_mask
            if attention_mask is None or attention_mask.dim() != 3
            else attention_mask[:, None],
            position_ids,
            past_key_values,
            sop=int(self.config.bos_token_id or -1),
            blanks=[self.config.blank_token_ids],
            masks_are_of_the_hidden=False,
        )
        if self.config.block_position_encoding:
            hidden = hidden + self.position_embeddings(positions[:, 0])
            hidden = hidden + self.block_position_embeddings(positions[:, 1])
        else:
            hidden = hidden + self.position_embeddings(self._counted(hidden, position_ids, past_key_values))
        for layer in self.layers:
            hidden = layer(hidden, mask, past_key_values=past_key_values, **kwargs)
        hidden = self.final_layernorm(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)  # type: ignore[arg-type]

    @staticmethod
    def _counted(hidden: Tensor, position_ids: Tensor | None, cache: Cache | None) -> Tensor:
        """Positions with one channel: those given, or the places in the row."""
        if position_ids is not None:
            return position_ids if position_ids.dim() < 3 else position_ids[:, 0]
        past = 0 if cache is None else cache.get_seq_length()
        return torch.arange(past, past + hidden.shape[1], device=hidden.device)[None]


class GLMChineseForCausalLM(GLMChinesePreTrainedModel, PrefixGeneration, GenerationMixin):
    """GLM with its output layer, which is always the embedding."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: GLMChineseConfig) -> None:
        super().__init__(config)
        self.transformer = GLMChineseModel(config)
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
        """Logits (B, T, V), and the loss of `labels` (B, T) as the original has it.

        Label i is what logit i should say (no shift); -100 and the padding id count nothing.
        """
        found = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
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
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
        )


def glm(old: Mapping[str, Any]) -> Conversion:
    """GLM-chinese as saved by the base class, or by the class with the head (``glm.`` before each name)."""
    refuse(old, {"relative_encoding": False, "output_predict": True})
    settings = {
        **taken(old, "vocab_size", "hidden_size", "num_attention_heads", "initializer_range"),
        **taken(old, "block_position_encoding"),
        "num_hidden_layers": needed(old, "num_layers", "num_hidden_layers"),
        "max_position_embeddings": old.get("max_sequence_length", 512),
        "pad_token_id": old.get("pad_token_id", 50000),
        "cls_token_id": old.get("cls_token_id", 50002),
        "bos_token_id": old.get("sop_token_id", 50006),
        "eos_token_id": old.get("eop_token_id", 50007),
        "tie_word_embeddings": True,
    }

    def place(name: str, tensor: Tensor) -> Named:
        name = name.removeprefix("glm.")
        if name.startswith("word_embeddings."):
            name = f"transformer.{name}"
        return [(name, tensor)]

    return Conversion(GLMChineseConfig(**settings), GLMChineseForCausalLM, place)
