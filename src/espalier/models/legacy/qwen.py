"""Qwen, the first generation: Qwen2 with its own way beyond the length that it was trained at.

In evaluation (not in training) a prompt longer than `seq_length` gets a larger rotary base, chosen by its
length once and kept while it is answered (dynamic NTK), and queries beyond `seq_length` are multiplied by
log_{seq_length}(position) (logn). Up to `seq_length` it is Qwen2, and a checkpoint with both switched off
becomes one.

Where it differs from the original on purpose: the first release ignored padding masks, this does not; and
given `position_ids` count, so that the layout of a batch does not change its numbers.

B rows, T tokens, D numbers a head.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2Model, apply_rotary_pos_emb

from espalier.errors import UserError
from espalier.models.legacy.conversion import Conversion, Named, needed, refuse, taken, thirds, token_ids
from espalier.models.legacy.family import Family, VocabularyFiles
from espalier.models.legacy.native import attend, projected
from espalier.models.legacy.notes import NotedCache, note, noted
from espalier.models.legacy.tokenizers import tiktoken_model
from espalier.models.legacy.tokenizers.build import wrapped
from espalier.models.memory import Memory
from espalier.models.positions.own import OwnPositions


class QwenConfig(OwnPositions, Qwen2Config):
    """Qwen2's, and: `seq_length` of training, `use_dynamic_ntk`, `use_logn_attn`."""

    model_type = "espalier_qwen"
    grows_by_itself = "a Qwen of the first generation, which grows its base by itself (dynamic NTK)"

    seq_length: int = 8192
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True

    def grow(self) -> None:
        self.use_dynamic_ntk = True


class QwenRotary(nn.Module):
    """Cosines and sines for one base a path, and the factor of the queries."""

    def __init__(self, config: QwenConfig) -> None:
        super().__init__()
        self.config = config
        self.alpha: Tensor | None = None  # (B or 1, T or 1); set before each call

    @torch.no_grad()
    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        size = int(self.config.head_dim or 0)
        assert self.alpha is not None
        parameters: Any = self.config.rope_parameters
        base = parameters["rope_theta"] * self.alpha.double() ** (size / (size - 2))
        exponents = torch.arange(0, size, 2, device=hidden.device, dtype=torch.float32) / size
        frequencies = 1.0 / base.float()[..., None] ** exponents  # (B, T or 1, D / 2)
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat([angles, angles], -1)
        factor = None
        if self.config.use_logn_attn and not self.training:
            length = self.config.seq_length
            factor = ((position_ids + 1).float().log() / math.log(length)).clamp(min=1.0)
            factor = factor[:, None, :, None].to(hidden.dtype)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype), factor


class QwenAttention(Qwen2Attention):
    """Qwen2's, with the queries multiplied by a factor."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor, Tensor | None],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        query, key, value = projected(self, hidden_states)
        cos, sin, factor = position_embeddings
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        if factor is not None:
            query = query * factor
        mixed = attend(self, query, key, value, attention_mask, past_key_values, **kwargs)
        return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), None


class QwenModel(Qwen2Model):
    config_class = QwenConfig
    config: QwenConfig

    def __init__(self, config: QwenConfig) -> None:
        super().__init__(config)
        self.rotary_emb = QwenRotary(config)  # type: ignore[assignment]
        for i, layer in enumerate(self.layers):
            layer.self_attn = QwenAttention(config, i)
        self.post_init()

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
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = NotedCache(config=self.config)
        length = given.shape[1]
        alpha = self._alpha(length, attention_mask, position_ids, past_key_values).to(given.device)
        self.rotary_emb.alpha = alpha
        outputs: BaseModelOutputWithPast = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return outputs

    def _alpha(self, length: int, mask: Any, position_ids: Tensor | None, cache: Cache | None) -> Tensor:
        """(B or 1, T or 1): what the rotary base grows by, from the length of each prompt."""
        if self.training or not self.config.use_dynamic_ntk:
            return torch.ones(1, 1)
        if isinstance(cache, Memory) and cache.step >= 0:
            return self._grown(torch.tensor([cache.lengths[p] for p in cache.of_row]))[:, None]
        kept = noted(cache, "alpha")
        if isinstance(mask, Tensor) and mask.dim() == 4:
            assert position_ids is not None, "a mask of one's own needs position_ids"
            alpha = self._of_trees(position_ids[0].cpu())
            if kept is not None and not bool((alpha == kept.cpu()[0, 0]).all()):
                self._refuse(position_ids)
        elif kept is not None:
            alpha = kept
        elif mask is None:
            past = 0 if cache is None else cache.get_seq_length()
            alpha = self._grown(torch.tensor([[past + length]]))
        else:
            alpha = self._grown(mask.bool().sum(1, keepdim=True))
        if not isinstance(cache, Memory):
            note(cache, alpha=alpha)
        return alpha

    def _grown(self, lengths: Tensor) -> Tensor:
        steps = (lengths.double() / self.config.seq_length).log2().add(1).ceil()
        return (2**steps - 1).clamp(min=1).float()

    def _of_trees(self, positions: Tensor) -> Tensor:
        """(1, T) of a row of trees with positions (T,): each tree's own, where its branches agree."""
        ends = torch.cat([positions[1:] <= positions[:-1], torch.ones(1, dtype=torch.bool)])
        tree = ((positions == 0) | (torch.arange(len(positions)) == 0)).long().cumsum(0) - 1
        grown = self._grown(positions[ends] + 1)
        most = torch.zeros(int(tree[-1]) + 1).scatter_reduce(0, tree[ends], grown, "amax")
        least = torch.full_like(most, torch.inf).scatter_reduce(0, tree[ends], grown, "amin")
        if not torch.equal(most, least):
            self._refuse(positions)
        return most[tree][None]

    def _refuse(self, positions: Tensor) -> None:
        raise UserError(
            f"a tree with a path of {int(positions.max()) + 1} tokens, and this model changes its positions with "
            f"the length of a text beyond {self.config.seq_length}: the branches of the tree would not agree. "
            f"Set layout: padded, or cutoff_len: {self.config.seq_length}."
        )


class QwenForCausalLM(Qwen2ForCausalLM):
    config_class = QwenConfig
    config: QwenConfig

    def __init__(self, config: QwenConfig) -> None:
        super().__init__(config)
        self.model = QwenModel(config)
        self.post_init()

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers', but places are counted with the padding, as the original counts them for logn."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        inputs.pop("position_ids", None)
        return inputs


_NAMES = {
    "transformer.wte.": "model.embed_tokens.",
    "transformer.ln_f.": "model.norm.",
    "transformer.h.": "model.layers.",
    ".ln_1.": ".input_layernorm.",
    ".ln_2.": ".post_attention_layernorm.",
    ".attn.c_proj.": ".self_attn.o_proj.",
    ".mlp.w1.": ".mlp.up_proj.",
    ".mlp.w2.": ".mlp.gate_proj.",
    ".mlp.c_proj.": ".mlp.down_proj.",
}


def qwen(old: Mapping[str, Any]) -> Conversion:
    """Qwen-7B and its kin, in the keys of the first release or of the later ones."""
    refuse(old, {"no_bias": True, "rotary_pct": 1.0, "pos_emb": "rotary", "activation": "swiglu"})
    heads = int(needed(old, "num_attention_heads", "n_head"))
    hidden = int(needed(old, "hidden_size", "n_embd"))
    settings: dict[str, Any] = {
        **taken(old, "initializer_range"),
        **token_ids(old),
        "vocab_size": needed(old, "padded_vocab_size", "vocab_size"),
        "hidden_size": hidden,
        "num_hidden_layers": needed(old, "num_hidden_layers", "n_layer"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": int(old.get("kv_channels") or hidden // heads),
        # the original stacks gate and up, and counts both
        "intermediate_size": int(needed(old, "intermediate_size", "ffn_hidden_size")) // 2,
        "rms_norm_eps": old.get("layer_norm_epsilon", 1e-6),
        "max_position_embeddings": old.get("max_position_embeddings", old.get("n_positions", 8192)),
        "rope_theta": float(old.get("rotary_emb_base", 10000.0)),
    }

    def place(name: str, tensor: Tensor) -> Named:
        if name.endswith(("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", "logn_tensor")):
            return []
        for old_part, new_part in _NAMES.items():
            name = name.replace(old_part, new_part)
        if ".attn.c_attn." not in name:
            return [(name, tensor)]
        size = tensor.shape[0] // 3
        names = (name.replace("attn.c_attn", f"self_attn.{x}_proj") for x in "qkv")
        return list(zip(names, thirds(tensor, size, size, size), strict=True))

    switches: dict[str, Any] = {
        "use_dynamic_ntk": bool(old.get("use_dynamic_ntk", False)),
        "use_logn_attn": bool(old.get("use_logn_attn", False)),
    }
    if not any(switches.values()):
        return Conversion(Qwen2Config(**settings), Qwen2ForCausalLM, place)
    length = int(needed(old, "seq_length"))
    return Conversion(QwenConfig(**settings, **switches, seq_length=length), QwenForCausalLM, place)


TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, with the system turn that the original puts first."""


def tokenizer(files: VocabularyFiles) -> PreTrainedTokenizerFast | None:
    """Qwen of the first generation; its text is not put between any marks."""
    if not files.named("qwen.tiktoken"):
        return None
    ranks = tiktoken_model.read_ranks(files.folder / "qwen.tiktoken")
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    made = tiktoken_model.fast_tokenizer(ranks, pattern=tiktoken_model.QWEN, special=special, compose=True)
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return wrapped(made, **ends, chat_template=TEMPLATE)


FAMILIES = (
    Family(
        name="qwen",
        model_types=("qwen",),
        convert=qwen,
        tokenizer=tokenizer,
        native=QwenForCausalLM,
        lora_targets={"espalier_qwen": ("q_proj", "v_proj"), "qwen": ("c_attn",)},
    ),
)
