"""One more token a row, three ways: blocks run by hand, the model's own code over our memory, or its own cache.

What each gives is the same; `generate` asks for the logits of the prompts, then for those of every next
token, and says which rows are still wanted.

P prompts, C copies of each, B rows, V vocabulary, d hidden, H heads, K key heads, D numbers a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from espalier.models.adapters.virtual import virtual_tokens
from espalier.models.attention import attention_mask, decoding_mask
from espalier.models.encoder_decoder import AnswerDecoder, is_encoder_decoder
from espalier.models.forward import Traits, tapped
from espalier.models.memory import Memory
from espalier.models.positions.rope_modules import changes_with_length
from espalier.models.sampling.own_cache import AfterVirtual, Apart, ByOwnCache
from espalier.models.sampling.recurrent import Recurrent, is_recurrent
from espalier.models.trunk import Trunk
from espalier.trees import Tree, lay_out_tree

PLAIN_BLOCKS = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
"""Models of transformers whose block is norm, attention with rotary positions, norm, gated feed-forward."""

READ = {"cpu": 1024, "cuda": 32_768}
"""Prompt tokens read at a time: on a CPU the activations of more leave the caches, on a GPU they take its memory."""

PACKED = 8
"""The head's weights are packed for so many rows and more."""


class Decoder(Protocol):
    def prompt_logits(self) -> Tensor:
        """(B, V) after the prompts."""

    def next_logits(self, tokens: Tensor, step: int) -> Tensor:
        """(B, V) after the tokens (B,) that were drawn at this step, counted from 0."""

    def keep(self, rows: Tensor) -> bool:
        """Go on with these rows (B',) alone; False: it cannot, and goes on with all."""


def span(room: int) -> int:
    """Tokens in which a row and those that came after it are written, before it must be dropped to make place.

    More than an answer has at most (`room`), since a row that has ended stays until it is worth the while.
    """
    return room + room // 2


def takes_rows(lm: nn.Module, traits: Traits, longest: int) -> bool:
    """Whether rows of up to so many tokens can be put in the place of others: `make_decoder` gives a `ByMemory`."""
    device = next(lm.parameters()).device
    shared = traits.method == "pieces" or (traits.method == "blocks" and device.type == "cuda")
    if not shared or any(w is not None and w < longest for w in traits.windows.values()):
        return False
    if is_encoder_decoder(lm) or is_recurrent(lm) or virtual_tokens(lm) is not None:
        return False
    return not changes_with_length(lm)


def make_decoder(
    lm: nn.Module, traits: Traits, prompts: Sequence[Sequence[int]], copies: int, room: int, most: int = 0
) -> Decoder:
    """The fastest way that is right for this model.

    Args:
        room: new tokens at most.
        most: rows at a time, where others come in the place of those that end (see `takes_rows`); 0: none come.
    """
    windows = [w for w in traits.windows.values() if w is not None]
    longest = max(map(len, prompts)) + room
    if takes_rows(lm, traits, longest):
        kind = ByHand if is_plain(lm) else ByMemory
        return kind(lm, traits, prompts, copies, room, most)
    assert not most, "no rows can come"
    if is_encoder_decoder(lm):
        return AnswerDecoder(lm, prompts, copies)
    if is_recurrent(lm):
        return Recurrent(lm, prompts, copies)
    virtual = virtual_tokens(lm)
    if virtual is not None:
        longest += virtual.length
        # Padding stands between learned keys and a prompt, and a window is counted in places.
        apart = virtual.ahead > 0 and any(w < longest for w in windows)
        return Apart(lm, prompts, copies) if apart else AfterVirtual(lm, prompts, copies)
    return ByOwnCache(lm, prompts, copies)


class ByMemory:
    """Prompts read once, in rows of trees; then the model's own code over our memory of keys and values.

    New rows can come at any step.

    Args:
        lm, traits: of the model.
        prompts: token ids, those of like length side by side.
        copies: rows of each.
        room: new tokens at most.
        most: rows at a time when others are to come; 0: none are.
    """

    kept_in: type[Memory] = Memory

    def __init__(
        self,
        lm: nn.Module,
        traits: Traits,
        prompts: Sequence[Sequence[int]],
        copies: int,
        room: int,
        most: int = 0,
    ) -> None:
        self.lm, self.traits, self.prompts, self.copies = lm, traits, prompts, copies
        self.device = next(lm.parameters()).device
        self.dtype = next(lm.parameters()).dtype
        if torch.is_autocast_enabled(self.device.type):
            self.dtype = torch.get_autocast_dtype(self.device.type)
        self.room, self.most = span(room) if most else room, most
        self.memory = self._memory(prompts, copies)
        self.newest = torch.empty(
            0
        )  # (1, V) after the prompt that was read last, for rows of it that come later

    def _memory(self, prompts: Sequence[Sequence[int]], copies: int) -> Memory:
        config: Any = self.lm.config
        layers = int(config.get_text_config().num_hidden_layers)
        return self.kept_in(
            layers, [len(p) for p in prompts], copies, self.room, self.dtype, self.device, self.most
        )

    def prompt_logits(self) -> Tensor:
        logits = self._read_all(self.memory, self.prompts)
        self.memory.step = 0
        return logits.repeat_interleave(self.copies, 0)

    def add(self, prompts: Sequence[Sequence[int]], of_row: Sequence[int]) -> Tensor:
        """Put rows behind the present ones, from the next step on; (B', V) after their prompts.

        Args:
            prompts: new ones to read; they are numbered on from the last one that was.
            of_row: the prompt of each new row: a new one, or the last one before, if `keep` has held it.
        """
        before = len(self.memory.lengths)
        logits, more = self.newest, None
        if prompts:
            more = self._memory(prompts, 0)
            logits = torch.cat([logits, self._read_all(more, prompts)])
        self.memory.add(more, of_row)
        return logits[[p - before + 1 for p in of_row]]

    def _read_all(
        self, memory: Memory, prompts: Sequence[Sequence[int]], trunks: Sequence[Trunk | None] = ()
    ) -> Tensor:
        """(P, V) after the prompts, whose keys and values the memory then has; `trunks`: what each goes on from."""
        after = list(trunks) or [None] * len(prompts)
        logits, start, most = [], 0, READ.get(self.device.type, READ["cuda"])
        while start < len(prompts):
            end, size = start + 1, len(prompts[start])
            while end < len(prompts) and size + len(prompts[end]) <= most and after[end] is after[start]:
                size, end = size + len(prompts[end]), end + 1
            memory.reading = (start, end)
            logits.append(self._read(memory, prompts[start:end], after[start]))
            start = end
        self.newest = logits[-1][-1:]
        return torch.cat(logits)

    def _read(self, memory: Memory, prompts: Sequence[Sequence[int]], trunk: Trunk | None = None) -> Tensor:
        batch = lay_out_tree([Tree.from_path(p, [False] * len(p)) for p in prompts]).to(self.device)
        if trunk is not None:
            batch = replace(batch, position_ids=batch.position_ids + trunk.length)
        mask = attention_mask(batch, self.traits.method, self.dtype, self.traits.windows, trunk)
        with tapped(self.lm.get_output_embeddings(), batch.leaf_at):  # type: ignore[operator]
            logits: Tensor = self.lm(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention_mask=mask,
                past_key_values=memory if trunk is None else trunk,
                use_cache=True,
            ).logits[0]
            return logits

    def next_logits(self, tokens: Tensor, step: int) -> Tensor:
        logits: Tensor = self.lm(
            input_ids=tokens[:, None],
            position_ids=self.memory.positions()[:, None],
            attention_mask=decoding_mask(self.memory, self.dtype, self.device),
            past_key_values=self.memory,
            use_cache=True,
        ).logits[:, -1]
        self.memory.step += 1
        return logits

    def keep(self, rows: Tensor, *, held: bool = False) -> bool:
        """Go on with these rows (B',) alone; `held`: the prompt that was read last stays in any case, for rows to come."""
        self.memory.keep(rows, len(self.memory.lengths) - 1 if held else None)
        return True


class ByHand(ByMemory):
    """The same, with the blocks of a plain model called part by part.

    One token a row is little work, and a third of the time went to the code around it. The model's own
    layers are called, so adapters and biases count; only what stands between them is written again.
    """

    def __init__(
        self,
        lm: nn.Module,
        traits: Traits,
        prompts: Sequence[Sequence[int]],
        copies: int,
        room: int,
        most: int = 0,
    ) -> None:
        super().__init__(lm, traits, prompts, copies, room, most)
        self.inner: Any = _inner(lm)
        head: Any = self.inner.lm_head
        self.head = _packed(head, max(most, len(prompts) * copies)) if self.device.type == "cpu" else head

    def next_logits(self, tokens: Tensor, step: int) -> Tensor:
        model = self.inner.model
        hidden = model.embed_tokens(tokens)
        cos, sin = model.rotary_emb(hidden, self.memory.positions()[:, None])
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        for index, block in enumerate(model.layers):
            hidden = self._block(block, index, hidden, cos, sin)
        self.memory.step += 1
        logits: Tensor = self.head(model.norm(hidden))
        return logits

    def _block(self, block: Any, index: int, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, d) to (B, d); cos and sin (B, 1, D)."""
        attention = block.self_attn
        normed = block.input_layernorm(hidden)
        shape = (len(hidden), -1, attention.head_dim)
        query = attention.q_proj(normed).view(shape)
        key = attention.k_proj(normed).view(shape)
        value = attention.v_proj(normed).view(shape)
        if self.inner.config.model_type == "qwen3":
            query, key = attention.q_norm(query), attention.k_norm(key)
        turned = torch.cat([query, key], 1)
        # Rotary positions turn (a, b) into (a cos - b sin, b cos + a sin); `sin` has its sign already.
        turned = torch.addcmul(turned * cos, turned.roll(turned.shape[-1] // 2, -1), sin)
        query, key = torch.split(turned.to(self.dtype), [query.shape[1], key.shape[1]], 1)
        stored = self.memory.update(key[:, :, None], value[:, :, None], index)
        out = self.memory.attend(query[:, :, None], stored[0], stored[1], attention.scaling)
        hidden = hidden + attention.o_proj(out.reshape(len(hidden), -1))
        inner: Tensor = block.mlp(block.post_attention_layernorm(hidden))
        return hidden + inner


def _inner(lm: Any) -> Any:
    """The model below an adapter, whose layers are the adapted ones."""
    return lm.get_base_model() if type(lm).__name__ == "PeftModelForCausalLM" else lm


def is_plain(lm: Any) -> bool:
    """Whether the blocks can be called by hand: a known class, and nobody else steps in between.

    Sharding and offloading work by hooks on modules or by forwards put in their place.
    """
    inner = _inner(lm)
    kind = type(inner)
    if kind.__name__ not in PLAIN_BLOCKS or not kind.__module__.startswith("transformers.models."):
        return False
    return not any(
        module._forward_pre_hooks or module._forward_hooks or "forward" in module.__dict__
        for module in lm.modules()
    )


def _packed(head: Any, rows: int) -> Any:
    """The head with its weights in the order in which oneDNN reads them: 1.4 to 2 times faster on a CPU.

    For a few rows it is not, and the copy of a large vocabulary's weights would be felt before every answer.
    """
    weight = head.weight
    plain = type(head) is nn.Linear and weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    mkldnn: Any = torch.backends.mkldnn  # without types
    if rows < PACKED or not plain or not mkldnn.is_available():
        return head
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    bias = None if head.bias is None else head.bias.detach()
    return lambda hidden: torch.ops.mkldnn._linear_pointwise(hidden, packed, bias, "none", [], "")
