"""PanGu-alpha (Zeng et al. 2021), 350M, 2.6B and 13B: GPT-2 blocks with a *query layer* on top.

The last block asks with rows of a third embedding table, one a position, instead of with what it has read;
the final norm stands before that block, not after it. A mask of integers is a mask as everywhere else (the
original adds it to the scores as it is, so that pads are seen).

B rows, T tokens, d hidden.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from espalier.models.legacy.conversion import Conversion, Named, needed, taken, token_ids
from espalier.models.legacy.family import Family, VocabularyFiles
from espalier.models.legacy.native import (
    Given,
    Native,
    NativeAttention,
    NativeConfig,
    NativeForCausalLM,
    NativeModel,
    attend,
    heads_first,
)
from espalier.models.legacy.tokenizers.pangu import FILE, PanguTokenizer
from espalier.models.positions.own import learned


class PanguConfig(NativeConfig):
    """Sizes of a PanGu-alpha model; `intermediate_size` None is 4 * hidden_size."""

    model_type = "espalier_pangu"
    unscalable = learned(model_type)

    vocab_size: int = 40000
    hidden_size: int = 2560
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    activation_function: str = "gelu"
    scale_attn_weights: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 9
    pad_token_id: int | None = 6


class PanguAttention(NativeAttention):
    """Queries may come from elsewhere than keys and values."""

    def __init__(self, config: PanguConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if not config.scale_attn_weights:
            self.scaling = 1.0
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
        mixed = attend(self, query, key, value, attention_mask, past_key_values, **kwargs)
        out: Tensor = self.c_proj(mixed.reshape(hidden.shape))
        return out


class PanguMLP(nn.Module):
    def __init__(self, config: PanguConfig) -> None:
        super().__init__()
        inner = config.intermediate_size or 4 * config.hidden_size
        self.c_fc = nn.Linear(config.hidden_size, inner)
        self.c_proj = nn.Linear(inner, config.hidden_size)
        self.act = ACT2FN[config.activation_function]

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.act(self.c_fc(hidden)))
        return out


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
        inner: Tensor = self.mlp(self.ln_2(hidden_states))
        return hidden_states + inner


class PanguPreTrainedModel(Native):
    config_class = PanguConfig
    config: PanguConfig
    _input_embed_layer = "wte"
    _no_split_modules = ["PanguBlock"]
    _can_record_outputs = {"hidden_states": PanguBlock}


class PanguModel(PanguPreTrainedModel, NativeModel):
    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.wqe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(PanguBlock(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.post_init()

    def read(
        self, hidden: Tensor, given: Given, token_type_ids: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        position_ids = given.places(hidden) if given.position_ids is None else given.position_ids
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=given.attention_mask,
            past_key_values=given.cache,
            position_ids=position_ids,
        )
        hidden = hidden + self.wpe(position_ids)
        if token_type_ids is not None:
            hidden = hidden + self.wte(token_type_ids)
        for block in self.h[:-1]:
            hidden = block(hidden, None, mask, past_key_values=given.cache, **kwargs)
        hidden = self.ln_f(hidden)
        asking = self.wqe(position_ids).expand_as(hidden)
        out: Tensor = self.h[-1](hidden, asking, mask, past_key_values=given.cache, **kwargs)
        return out


class PanguForCausalLM(PanguPreTrainedModel, NativeForCausalLM):
    model_class = PanguModel
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Shifted, where padding counts nothing either."""
        return super().loss_of(logits, self._without_padding(labels))


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


TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<eot>{% else %}<sep>{% endif %}{% endfor %}"
)
"""``问题<sep>回答<eot>``, below the tokenizer's own ``<s>``."""


def tokenizer(files: VocabularyFiles) -> PreTrainedTokenizerBase | None:
    """A class of its own, which cuts words first."""
    if not files.named(FILE):
        return None
    return PanguTokenizer(str(files.folder / FILE), chat_template=TEMPLATE)


FAMILIES = (
    Family(
        name="pangu",
        model_types=("gpt_pangu", "pangu"),
        convert=pangu,
        tokenizer=tokenizer,
        native=PanguForCausalLM,
        lora_targets={"espalier_pangu": ("q_proj", "v_proj")},
    ),
)
