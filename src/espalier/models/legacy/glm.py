"""GLM-chinese (Du et al. 2022), 335M and 10B: a prefix language model with positions in two channels.

Masks as the original takes them: None, the length of the prompt for all rows or one for each (1-D), or 0/1
masks (B, 1, Q, K) of integers or booleans. What it does not do: a 2-D mask is a padding mask here, as
everywhere in transformers (in the original it lets every token see its own successor); with it the prompt is
read off the ids, see `espalier.models.legacy.prefix`.

B rows, T tokens, d hidden.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from espalier.models.legacy.conversion import Conversion, Named, needed, refuse, taken
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
from espalier.models.legacy.tokenizers.build import ASKED_AND_ANSWERED, ids_behind, put_around, wrapped
from espalier.models.legacy.tokenizers.sentencepiece_file import read_model
from espalier.models.legacy.tokenizers.sentencepiece_model import fast_tokenizer
from espalier.models.positions.own import learned


class GLMChineseConfig(NativeConfig):
    """Sizes and special ids of a GLM; `blank_token_ids` are [MASK], [sMASK] and [gMASK]."""

    model_type = "espalier_glm"
    unscalable = learned(model_type)

    vocab_size: int = 50048
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    max_position_embeddings: int = 1024
    block_position_encoding: bool = True
    bos_token_id: int | None = 50006
    eos_token_id: int | list[int] | None = 50007
    pad_token_id: int | None = 50000
    cls_token_id: int = 50002
    blank_token_ids: list[int] | tuple[int, ...] = (50003, 50008, 50009)


class GLMChineseBlock(GradientCheckpointingLayer):
    """Norm, attention, norm, MLP; all with biases, the inner size four times the outer."""

    def __init__(self, config: GLMChineseConfig, layer_idx: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_epsilon
        self.input_layernorm = nn.LayerNorm(size, eps=eps)
        self.attention = GLMChineseAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(size, eps=eps)
        self.mlp = NativeMLP(size, 4 * size, "gelu")

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        normed = self.input_layernorm(hidden_states)
        hidden_states = hidden_states + self.attention(normed, attention_mask, past_key_values, **kwargs)
        inner: Tensor = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + inner


class GLMChineseAttention(FusedAttention):
    """Rows of `query_key_value` stand as all queries, all keys, all values."""

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None, past_key_values: Cache | None, **kwargs: Any
    ) -> Tensor:
        query, key, value = (
            heads_first(x, self.head_dim) for x in self.query_key_value(hidden).chunk(3, dim=-1)
        )
        mixed = attend(self, query, key, value, attention_mask, past_key_values, **kwargs)
        out: Tensor = self.dense(mixed.reshape(hidden.shape))
        return out


class GLMChinesePreTrainedModel(Native):
    config_class = GLMChineseConfig
    config: GLMChineseConfig
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ["GLMChineseBlock"]
    _can_record_outputs = {"hidden_states": GLMChineseBlock}


class GLMChineseModel(GLMChinesePreTrainedModel, NativeModel):
    cache_class = NotedCache

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
        self.post_init()

    def read(self, hidden: Tensor, given: Given, **kwargs: Any) -> Tensor:
        if given.attention_mask is not None and given.attention_mask.dim() == 3:
            given = given._replace(attention_mask=given.attention_mask[:, None])
        positions, mask = positions_and_mask(
            given,
            hidden,
            sop=int(self.config.bos_token_id or -1),
            blanks=[self.config.blank_token_ids],
            masks_are_of_the_hidden=False,
        )
        if self.config.block_position_encoding:
            hidden = hidden + self.position_embeddings(positions[:, 0])
            hidden = hidden + self.block_position_embeddings(positions[:, 1])
        else:
            hidden = hidden + self.position_embeddings(self._counted(hidden, given))
        for layer in self.layers:
            hidden = layer(hidden, mask, past_key_values=given.cache, **kwargs)
        normed: Tensor = self.final_layernorm(hidden)
        return normed

    @staticmethod
    def _counted(hidden: Tensor, given: Given) -> Tensor:
        """Positions with one channel: those given, or the places in the row."""
        positions = given.position_ids
        if positions is None:
            return given.places(hidden)
        return positions if positions.dim() < 3 else positions[:, 0]


class GLMChineseForCausalLM(GLMChinesePreTrainedModel, PrefixGeneration, NativeForCausalLM):
    """GLM with its output layer, which is always the embedding."""

    model_class = GLMChineseModel
    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As the original has it: label i is what logit i should say (no shift); -100 and padding count nothing."""
        labels = self._without_padding(labels)
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


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


SPECIAL = (
    *("<|endoftext|>", "[SEP]", "[CLS]", "[MASK]", "[UNUSED1]", "[UNUSED2]"),
    *("<|startofpiece|>", "<|endofpiece|>", "[sMASK]", "[gMASK]"),
)
"""What stands behind the pieces, in this order."""
TEMPLATE = (
    ASKED_AND_ANSWERED + "{% set prompt = asked | map(attribute='content') | join('\n') %}"
    "[CLS]{{ prompt }}{% if not ('[MASK]' in prompt or '[sMASK]' in prompt or '[gMASK]' in prompt) %}[gMASK]"
    "{% endif %}<|endoftext|>{% if answered %}<|startofpiece|>{{ messages[-1]['content'] }}<|endofpiece|>"
    "{% elif add_generation_prompt %}<|startofpiece|>{% endif %}"
)
"""``[CLS]问题[gMASK]<|endoftext|><|startofpiece|>回答<|endofpiece|>``; a blank of the user's own is kept."""


def tokenizer(files: VocabularyFiles) -> PreTrainedTokenizerFast | None:
    """``[CLS]`` A ``<|endoftext|>``; truncated at the left, as the original."""
    if not files.named("cog-pretrain.model"):
        return None
    model = read_model(files.folder / "cog-pretrain.model")
    made = fast_tokenizer(model, special=ids_behind(model, SPECIAL))
    single, names = "[CLS] $A <|endoftext|>", ["[CLS]", "[SEP]", "<|endoftext|>"]
    put_around(made, single, "[CLS] $A [SEP] $B:0 <|endoftext|>", names)
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    return wrapped(
        made,
        **ends,
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        truncation_side="left",
        chat_template=TEMPLATE,
    )


FAMILIES = (
    Family(
        name="glm",
        model_types=("glm",),
        convert=glm,
        # transformers' own GLM has the same model type
        owns=lambda config: "block_position_encoding" in config or "max_sequence_length" in config,
        tokenizer=tokenizer,
        native=GLMChineseForCausalLM,
        lora_targets={"espalier_glm": ("query_key_value",)},
        marks=Marks(
            "<|startofpiece|>",
            "<|endofpiece|>",
            "[MASK]",
            "[sMASK]",
            "[gMASK]",
            before="[CLS]",
            shares=(0.5, 0.3, 0.2),  # the published settings of GLM-10B
        ),
    ),
)
