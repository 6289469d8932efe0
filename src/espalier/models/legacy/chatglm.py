"""ChatGLM-6B, the first generation: a prefix language model with rotary positions in two channels.

The residual of a block is its *normalised* input times a constant. The layer-dependent scaling of scores in
the original cancels out (it kept fp16 in range) and is left out. Its frequencies are rounded to fp16, as the
original's are in every precision. Masks (B, 1, Q, K) of booleans are the original's: true means hidden.

B rows, T tokens, d hidden, D numbers a head.
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
from transformers.models.llama.modeling_llama import rotate_half
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from espalier.models.legacy.conversion import Conversion, Named, needed, refuse, taken, token_ids
from espalier.models.legacy.native import Native, attend, heads_first, kept
from espalier.models.legacy.notes import NotedCache
from espalier.models.legacy.prefix_generation import PrefixGeneration, positions_and_mask

RESIDUAL = (2 * 28) ** 0.5
"""Factor of the residual: sqrt(2 * 28) in the original, whatever the number of layers."""

Angles = tuple[Tensor, Tensor]


class ChatGLMConfig(PreTrainedConfig):
    """Sizes and special ids of a ChatGLM-6B; `bos_token_id` is ``<sop>`` and `eos_token_id` ``<eop>``."""

    model_type = "espalier_chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 130528
    hidden_size: int = 4096
    intermediate_size: int = 16384
    num_hidden_layers: int = 28
    num_attention_heads: int = 32
    max_position_embeddings: int = 2048
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 130004
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3
    mask_token_id: int = 130000
    gmask_token_id: int = 130001
    tie_word_embeddings: bool = True


class ChatGLMBlock(GradientCheckpointingLayer):
    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_epsilon
        self.input_layernorm = nn.LayerNorm(size, eps=eps)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(size, eps=eps)
        self.mlp = ChatGLMMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        angles: tuple[Angles, Angles],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        normed = self.input_layernorm(hidden_states)
        hidden_states = RESIDUAL * normed + self.attention(
            normed, attention_mask, angles, past_key_values, **kwargs
        )
        normed = self.post_attention_layernorm(hidden_states)
        return RESIDUAL * normed + self.mlp(normed)


class ChatGLMAttention(nn.Module):
    """Rows of `query_key_value` stand as query, key, value of the first head, then of the second, and so on."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups, self.is_causal = 1, True
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        angles: tuple[Angles, Angles],
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        mixed = heads_first(self.query_key_value(hidden), 3 * self.head_dim)
        query, key, value = mixed.split(self.head_dim, dim=-1)
        query, key = turned(query, angles), turned(key, angles)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        found = attend(self, query, key, value, attention_mask, self.scaling, **kwargs)
        return self.dense(found.reshape(hidden.shape))


class ChatGLMMLP(nn.Module):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN["gelu_new"]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.act(self.dense_h_to_4h(hidden)))


def angles_of(positions: Tensor, size: int, dtype: torch.dtype) -> Angles:
    """Cosines and sines (B, 1, T, size) of one channel of positions (B, T)."""
    exponents = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size
    frequencies = (1.0 / 10000**exponents).half().float()
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(x: Tensor, angles: tuple[Angles, Angles]) -> Tensor:
    """Rotary positions (Su et al. 2021): the first half of each head by channel 0, the second by channel 1."""
    halves = zip(x.chunk(2, dim=-1), angles, strict=True)
    return torch.cat([half * cos + rotate_half(half) * sin for half, (cos, sin) in halves], -1)


class ChatGLMPreTrainedModel(Native):
    config_class = ChatGLMConfig
    config: ChatGLMConfig
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ["ChatGLMBlock"]
    _can_record_outputs = {"hidden_states": ChatGLMBlock}


class ChatGLMModel(ChatGLMPreTrainedModel):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLMBlock(config, i) for i in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
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
            attention_mask,
            position_ids,
            past_key_values,
            sop=int(self.config.bos_token_id or -1),
            blanks=[[self.config.gmask_token_id], [self.config.mask_token_id]],
            masks_are_of_the_hidden=True,
        )
        size = self.config.hidden_size // self.config.num_attention_heads // 2
        angles = (
            angles_of(positions[:, 0], size, hidden.dtype),
            angles_of(positions[:, 1], size, hidden.dtype),
        )
        for layer in self.layers:
            hidden = layer(hidden, mask, angles, past_key_values=past_key_values, **kwargs)
        hidden = self.final_layernorm(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)  # type: ignore[arg-type]


class ChatGLMForCausalLM(ChatGLMPreTrainedModel, PrefixGeneration, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}
    masks_are_of_the_hidden = True

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
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
        """Logits (B, T, V), and the loss of `labels` (B, T), shifted, where -100 counts nothing."""
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
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
        )


def chatglm(old: Mapping[str, Any]) -> Conversion:
    """ChatGLM-6B keeps its names; files from before April 2023 had 20,000 ids of images in front of the text's."""
    refuse(old, {"position_encoding_2d": True, "pre_seq_len": None, "quantization_bit": 0})
    first = 20000 if int(needed(old, "vocab_size")) == 150528 else 0
    settings = {
        **taken(old, "vocab_size", "hidden_size", "num_attention_heads"),
        **token_ids(old, bos_token_id=130004 + first, eos_token_id=130005 + first, pad_token_id=3 + first),
        "num_hidden_layers": needed(old, "num_layers", "num_hidden_layers"),
        "intermediate_size": needed(old, "inner_hidden_size"),
        "max_position_embeddings": old.get("max_sequence_length", 2048),
        "layer_norm_epsilon": old.get("layernorm_epsilon", 1e-5),
        "mask_token_id": old.get("mask_token_id", 130000 + first),
        "gmask_token_id": old.get("gmask_token_id", 130001 + first),
    }

    def place(name: str, tensor: Tensor) -> Named:
        return [] if name.endswith("rotary_emb.inv_freq") else [(name, tensor)]

    return Conversion(ChatGLMConfig(**settings), ChatGLMForCausalLM, place)
