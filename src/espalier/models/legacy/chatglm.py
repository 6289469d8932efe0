"""ChatGLM-6B, the first generation: a prefix language model with rotary positions in two channels.

The residual of a block is its *normalised* input times a constant. The layer-dependent scaling of scores in
the original cancels out (it kept fp16 in range) and is left out. Its frequencies are rounded to fp16, as the
original's are in every precision. Masks (B, 1, Q, K) of booleans are the original's: true means hidden.

B rows, T tokens, d hidden, D numbers a head.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import rotate_half

from espalier.models.legacy.conversion import Conversion, Named, needed, refuse, taken, token_ids
from espalier.models.legacy.family import Family, Marks, VocabularyFiles
from espalier.models.legacy.native import (
    FusedAttention,
    Given,
    Native,
    NativeConfig,
    NativeForCausalLM,
    NativeMLP,
    NativeModel,
    attend,
    heads_first,
)
from espalier.models.legacy.notes import NotedCache
from espalier.models.legacy.prefix_generation import PrefixGeneration, positions_and_mask
from espalier.models.legacy.tokenizers.build import ASKED_AND_ANSWERED, ids_within, put_around, wrapped
from espalier.models.legacy.tokenizers.sentencepiece_file import CONTROL, read_model
from espalier.models.legacy.tokenizers.sentencepiece_model import fast_tokenizer

RESIDUAL = (2 * 28) ** 0.5
"""Factor of the residual: sqrt(2 * 28) in the original, whatever the number of layers."""

Angles = tuple[Tensor, Tensor]


class ChatGLMConfig(NativeConfig):
    """Sizes and special ids of a ChatGLM-6B; `bos_token_id` is ``<sop>`` and `eos_token_id` ``<eop>``."""

    model_type = "espalier_chatglm"
    unscalable = (
        "ChatGLM-6B has two channels of positions, of which the second counts from its answer's beginning; no scaling "
        "of these is known. Remove it, or take ChatGLM2."
    )

    vocab_size: int = 130528
    hidden_size: int = 4096
    intermediate_size: int = 16384
    num_hidden_layers: int = 28
    num_attention_heads: int = 32
    max_position_embeddings: int = 2048
    bos_token_id: int | None = 130004
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3
    mask_token_id: int = 130000
    gmask_token_id: int = 130001


class ChatGLMBlock(GradientCheckpointingLayer):
    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_epsilon
        self.input_layernorm = nn.LayerNorm(size, eps=eps)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(size, eps=eps)
        self.mlp = NativeMLP(size, config.intermediate_size, "gelu_new")

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        angles: tuple[Angles, Angles],
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        normed: Tensor = self.input_layernorm(hidden_states)
        hidden_states = RESIDUAL * normed + self.attention(
            normed, attention_mask, angles, past_key_values, **kwargs
        )
        normed = self.post_attention_layernorm(hidden_states)
        inner: Tensor = self.mlp(normed)
        return RESIDUAL * normed + inner


class ChatGLMAttention(FusedAttention):
    """Rows of `query_key_value` stand as query, key, value of the first head, then of the second, and so on."""

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor,
        angles: tuple[Angles, Angles],
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        mixed = heads_first(self.query_key_value(hidden), 3 * self.head_dim)
        query, key, value = torch.split(mixed, self.head_dim, dim=-1)
        query, key = turned(query, angles), turned(key, angles)
        mixed = attend(self, query, key, value, attention_mask, past_key_values, **kwargs)
        out: Tensor = self.dense(mixed.reshape(hidden.shape))
        return out


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


class ChatGLMModel(ChatGLMPreTrainedModel, NativeModel):
    cache_class = NotedCache

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLMBlock(config, i) for i in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.post_init()

    def read(self, hidden: Tensor, given: Given, **kwargs: Any) -> Tensor:
        positions, mask = positions_and_mask(
            given,
            hidden,
            sop=int(self.config.bos_token_id or -1),
            blanks=[[self.config.gmask_token_id], [self.config.mask_token_id]],
            masks_are_of_the_hidden=True,
        )
        size = self.config.hidden_size // self.config.num_attention_heads // 2
        angles = tuple(angles_of(channel, size, hidden.dtype) for channel in positions.unbind(1))
        for layer in self.layers:
            hidden = layer(hidden, mask, angles, past_key_values=given.cache, **kwargs)
        normed: Tensor = self.final_layernorm(hidden)
        return normed


class ChatGLMForCausalLM(ChatGLMPreTrainedModel, PrefixGeneration, NativeForCausalLM):
    model_class = ChatGLMModel
    masks_are_of_the_hidden = True
    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}


def chatglm(old: Mapping[str, Any]) -> Conversion:
    """ChatGLM-6B keeps its names; files from before April 2023 had 20,000 ids of images in front of the text's."""
    refuse(old, {"position_encoding_2d": True, "pre_seq_len": None, "quantization_bit": 0})
    first = IMAGES if int(needed(old, "vocab_size")) == 150528 else 0
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


IMAGES = 20000
"""Ids of images that stood before the text's in files from before April 2023."""
TEMPLATE = (
    ASKED_AND_ANSWERED + "{% set round = namespace(n=0) %}{% for m in asked %}"
    "{% if m['role'] == 'assistant' %}{{ m['content'] }}\n"
    "{% elif asked | length == 1 %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}[Round {{ round.n }}]\n问：{{ m['content'] }}\n答："
    "{% set round.n = round.n + 1 %}{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if answered %}[gMASK]<sop>{{ messages[-1]['content'] }}<eop>"
    "{% elif add_generation_prompt %}[gMASK]<sop>{% endif %}"
)
"""``问题[gMASK]<sop>回答<eop>``; with a history, rounds from 0 on."""


def tokenizer(files: VocabularyFiles) -> PreTrainedTokenizerFast | None:
    """A ``[gMASK] <sop>``, or A ``[gMASK] <sop>`` B ``<eop>``; newlines, tabs and runs of spaces have pieces."""
    if not files.named("ice_text.model"):
        return None
    early = files.config.get("vocab_size") == 150528 or files.settings.get("num_image_tokens") == IMAGES
    model = read_model(files.folder / "ice_text.model")
    model.pieces[:0] = [(f"<image_{i}>", 0.0, CONTROL) for i in range(IMAGES if early else 0)]
    names = ["<unk>", "<pad>", "</s>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
    special = ids_within(model, names)
    written = [("\n", "<n>"), ("\t", "<|tab|>")]
    written += [(" " * k, f"<|blank_{k}|>") for k in range(80, 1, -1)]
    known = {text for text, _, _ in model.pieces}
    made = fast_tokenizer(
        model, special=special, written=[(t, piece) for t, piece in written if piece in known]
    )
    put_around(made, "$A [gMASK] <sop>", "$A [gMASK] <sop> $B:0 <eop>", ["[gMASK]", "<sop>", "<eop>"])
    ends = {"bos_token": "<sop>", "eos_token": "<eop>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return wrapped(made, **ends, mask_token="[MASK]", padding_side="left", chat_template=TEMPLATE)


FAMILIES = (
    Family(
        name="chatglm",
        model_types=("chatglm",),
        convert=chatglm,
        owns=lambda config: "position_encoding_2d" in config or "inner_hidden_size" in config,
        tokenizer=tokenizer,
        native=ChatGLMForCausalLM,
        lora_targets=dict.fromkeys(("espalier_chatglm", "chatglm"), ("query_key_value",)),
        # Shares of Zeng et al. 2023 (GLM-130B), section 2.2, which has no sentences either.
        marks=Marks("<sop>", "<eop>", "[MASK]", None, "[gMASK]", before=None, shares=(0.3, 0.0, 0.7)),
    ),
)
