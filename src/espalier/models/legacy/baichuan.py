"""Baichuan-13B and Baichuan2: Llama with ALiBi in place of rotary positions, and a head of unit rows.

ALiBi (Press et al. 2022) adds ``slope * (k - q)`` to the score of key k for query q. Only ``slope * k`` matters
in a softmax over keys, and that is two further numbers in each key and query: so every attention
implementation, cache and tree layout computes it without a mask of its own.

Baichuan-7B is plain Llama, and so is Baichuan2-7B once the rows of its head are normalised;
the module here serves it where the original trains with a z-loss or ties the embeddings.

B rows, T tokens, H heads, D numbers a head.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

from espalier.models.legacy.conversion import Conversion, Named
from espalier.models.legacy.family import Family, VocabularyFiles
from espalier.models.legacy.llama_like import llama_settings, place_packed
from espalier.models.legacy.native import attend, projected
from espalier.models.legacy.prefix import additive
from espalier.models.legacy.tokenizers.build import llama_pieces
from espalier.models.legacy.tokenizers.sentencepiece_file import read_model
from espalier.models.positions.own import OwnPositions
from espalier.models.positions.rope_modules import slope_factors

BLOCK = 256
"""A position is ``BLOCK * a + b``, so that both numbers are exact in bfloat16 up to 65,536 tokens."""


class BaichuanConfig(OwnPositions, LlamaConfig):
    """Llama's, and: `alibi` for ALiBi (else rotary), `norm_head`, and `z_loss_weight` of the original loss.

    `alibi_scaling`: rope_type and factor of `espalier.models.positions.rope`, for texts longer than it was trained at.
    """

    model_type = "espalier_baichuan"

    alibi: bool = True
    norm_head: bool = False
    z_loss_weight: float = 0.0
    alibi_scaling: dict[str, Any] | None = None

    @property
    def has_slopes(self) -> bool:  # type: ignore[override]
        return self.alibi


def slopes(heads: int) -> Tensor:
    """The slope of each head (H,), float32: a geometric series, filled up with every second one of the next."""
    closest = 2 ** int(math.log2(heads))
    series = [2 ** (-8 * (i + 1) / closest) for i in range(closest)]
    series += [2 ** (-4 * (2 * i + 1) / closest) for i in range(heads - closest)]
    return torch.tensor(series)


class ALiBiAttention(LlamaAttention):
    """Llama's attention without rotation, with positions in further columns of queries and keys."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        *,
        position_ids: Tensor,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        query, key, value = projected(self, hidden_states)
        size, wide = self.head_dim, -(-(self.head_dim + 2) // 8) * 8  # kernels want multiples of 8
        steep = slopes(query.shape[1]).to(query.device)
        scaled: Any = self.config.alibi_scaling
        if scaled:
            steep = steep * slope_factors(steep, scaled["rope_type"], scaled["factor"])
        slope = (steep / self.scaling)[None, :, None, None]
        asked = torch.cat([slope * BLOCK, slope], -1).to(query.dtype)
        at = position_ids[:, None, :, None]
        placed = torch.cat([at // BLOCK, at % BLOCK], -1).to(key.dtype)
        query = _widened(query, asked, wide)
        key = _widened(key, placed, wide)
        value = nn.functional.pad(value, (0, wide - size))
        mixed = attend(self, query, key, value, attention_mask, past_key_values, **kwargs)[..., :size]
        return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), None


def _widened(x: Tensor, columns: Tensor, wide: int) -> Tensor:
    """(B, H, T, D) and (B, H, T, 2), either broadcast, to (B, H, T, wide) with zeros at the end."""
    columns = columns.expand(*x.shape[:-1], 2)
    return nn.functional.pad(torch.cat([x, columns], -1), (0, wide - x.shape[-1] - 2))


class NormHead(nn.Linear):
    """An output layer whose rows count by their direction alone."""

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, nn.functional.normalize(self.weight))


class BaichuanModel(LlamaModel):
    config_class = BaichuanConfig

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        if config.alibi:
            for i, layer in enumerate(self.layers):
                layer.self_attn = ALiBiAttention(config, i)
            self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPast:
        """As Llama's; a mask (B, T) may name segments 1, 2, 3, ... that do not see each other (0: padding)."""
        mask = _by_segment(input_ids, attention_mask, self.dtype)
        outputs: BaseModelOutputWithPast = super().forward(input_ids, mask, **kwargs)
        return outputs


def _by_segment(input_ids: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype == torch.bool or mask.is_floating_point():
        return mask
    if mask.dim() == 3:
        return additive(mask[:, None].bool(), dtype)
    if mask.dim() != 2 or input_ids is None or mask.shape != input_ids.shape or int(mask.max()) <= 1:
        return mask
    same = (mask[:, None, :] == mask[:, :, None]) & (mask != 0)[:, None, :]
    return additive(same.tril()[:, None], dtype)


class BaichuanForCausalLM(LlamaForCausalLM):
    config_class = BaichuanConfig
    config: BaichuanConfig

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = BaichuanModel(config)
        if config.norm_head:
            self.lm_head = NormHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """A new head (of another vocabulary) counts by direction too."""
        if self.config.norm_head and isinstance(new_embeddings, nn.Linear):
            weight = new_embeddings.weight
            new_embeddings = NormHead(weight.shape[1], weight.shape[0], bias=False, device="meta")
            new_embeddings.weight = weight
        super().set_output_embeddings(new_embeddings)

    def forward(
        self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        """As Llama's; the loss has the original's z-loss: its weight times the mean of the largest logit squared."""
        outputs: CausalLMOutputWithPast = super().forward(input_ids=input_ids, labels=labels, **kwargs)
        if outputs.loss is not None and self.config.z_loss_weight:
            assert outputs.logits is not None
            largest = outputs.logits[:, :-1].float().amax(-1)
            outputs.loss = outputs.loss + self.config.z_loss_weight * largest.square().mean()
        return outputs


def baichuan_7b(old: Mapping[str, Any]) -> Conversion:
    """Baichuan-7B: Llama with query, key and value stacked in one matrix."""
    return Conversion(LlamaConfig(**llama_settings(old)), LlamaForCausalLM, place_packed)


def baichuan_alibi(old: Mapping[str, Any]) -> Conversion:
    """Baichuan-13B."""
    return _native(old, alibi=True, norm_head=False)


def baichuan2_alibi(old: Mapping[str, Any]) -> Conversion:
    """Baichuan2-13B."""
    return _native(old, alibi=True, norm_head=True)


def baichuan2_rotary(old: Mapping[str, Any]) -> Conversion:
    """Baichuan2-7B: Llama, with the rows of the head normalised once, where nothing is lost by that."""
    settings = llama_settings(old)
    if settings["tie_word_embeddings"] or old.get("z_loss_weight"):
        return _native(old, alibi=False, norm_head=True)

    def place(name: str, tensor: Tensor) -> Named:
        if name == "lm_head.weight":
            return [(name, nn.functional.normalize(tensor.float()).to(tensor.dtype))]
        return place_packed(name, tensor)

    return Conversion(LlamaConfig(**settings), LlamaForCausalLM, place)


def _native(old: Mapping[str, Any], *, alibi: bool, norm_head: bool) -> Conversion:
    settings = {
        "max_position_embeddings": old.get("model_max_length", 4096),
        **llama_settings(old),
        "alibi": alibi,
        "norm_head": norm_head,
        "z_loss_weight": float(old.get("z_loss_weight") or 0.0),
    }
    return Conversion(BaichuanConfig(**settings), BaichuanForCausalLM, place_packed)


def template(user: str, assistant: str) -> str:
    """Turns between two reserved tokens, which have other names in each generation; answers end with ``</s>``."""
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}</s>"
        f"{{% elif m['role'] == 'user' %}}{user}{{{{ m['content'] }}}}{assistant}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )


def tokenizer(files: VocabularyFiles) -> PreTrainedTokenizerFast | None:
    """Sentencepiece, with a bos token in front where the configuration says so."""
    own = files.tokenizer_class.lower().startswith("baichuan") or files.model_type == "baichuan"
    if not own or not files.named("tokenizer.model"):
        return None
    file = files.folder / "tokenizer.model"
    pieces = read_model(file).pieces
    turns = template(pieces[195][0], pieces[196][0]) if len(pieces) > 196 else None
    return llama_pieces(file, files.settings, turns, begins=False)


def _second(config: Mapping[str, Any]) -> bool:
    """Whether it is Baichuan2, whose head is normalised: the weights do not show it, and these are its marks."""
    return (
        "z_loss_weight" in config
        or config.get("vocab_size") == 125696
        or config.get("tokenizer_class") == "BaichuanTokenizer"
    )


def _is_7b(config: Mapping[str, Any]) -> bool:
    """Whether it has rotary positions, whose number it says."""
    return "max_position_embeddings" in config


_family = partial(
    Family,
    model_types=("baichuan",),
    tokenizer=tokenizer,
    native=BaichuanForCausalLM,
    lora_targets={"espalier_baichuan": ("q_proj", "v_proj"), "baichuan": ("W_pack",)},
)
FAMILIES = (
    _family(
        name="baichuan_7b",
        convert=baichuan_7b,
        owns=lambda config: (
            "BaiChuanForCausalLM" in (config.get("architectures") or [])
            or (_is_7b(config) and not _second(config))
        ),
    ),
    _family(name="baichuan2_7b", convert=baichuan2_rotary, owns=_is_7b),
    _family(name="baichuan2_13b", convert=baichuan2_alibi, owns=_second),
    _family(name="baichuan_13b", convert=baichuan_alibi),
)
