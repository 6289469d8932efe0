"""What a scaling of positions asks of the built model: bases by the length of each text, slopes, tables.

Transformers' dynamic NTK takes its frequencies from the longest text of the batch, so that a text's numbers depend on
what it was batched with. Here each text has its own, and they are those that it has when it is alone: a padded row by
its length, a tree by its longest path. What is sampled keeps the base of its prompt: keys that were turned by one base
and queries by another do not know their distance.

B rows, T tokens, H heads.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import BloomModel
from transformers.models.mpt.modeling_mpt import MptModel

from espalier.models.positions.rope import TABLES

BY_LENGTH = ("dynamic", "longrope")
"""Kinds of scaling whose frequencies depend on a text's length."""

_prompts: list[Tensor] = []  # (B,) lengths of the prompts that are answered now


def put_in_place(lm: nn.Module) -> nn.Module:
    """The model as its configuration says; to be called once, when it has been built."""
    config: Any = lm.config
    text = config.get_text_config()
    given = text.to_dict()
    if given.get("alibi_scaling"):
        _scale_slopes(lm, given["alibi_scaling"])
    if given.get("rope_table") and text.model_type in TABLES:
        _make_tables(lm, text, given["rope_table"])
    for parent in list(lm.modules()):
        for name, module in list(parent.named_children()):
            if type(module).__name__.endswith("RotaryEmbedding") and _kind(module) in BY_LENGTH:
                setattr(parent, name, ByText(module))
    return lm


def _kind(rotary: Any) -> str | None:
    kind = rotary.__dict__.get("rope_type")
    return kind if isinstance(kind, str) else None


def changes_with_length(lm: nn.Module) -> bool:
    """Whether a token's numbers depend on how long its text is going to be."""
    return any(isinstance(module, ByText) for module in lm.modules())


@contextmanager
def answering(prompts: Tensor) -> Iterator[None]:
    """Inside, single tokens belong to answers to prompts of these lengths (B,)."""
    _prompts.append(prompts)
    try:
        yield
    finally:
        _prompts.pop()


class ByText(nn.Module):
    """A rotary module of transformers with the frequencies of each text by itself.

    Args:
        rotary: of a kind in `BY_LENGTH`.
    """

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.rotary: Any = rotary
        config = rotary.config
        parameters = config.rope_parameters
        self.threshold = int(
            parameters.get("original_max_position_embeddings") or config.max_position_embeddings
        )
        self.by_step = rotary.rope_type == "longrope"  # one set of factors below the threshold, one above it
        # Below the wrapper that looks at the whole batch.
        self._turn = inspect.unwrap(type(rotary).forward)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> Any:
        """As the architecture's own, for positions (B, T)."""
        lengths = self._lengths(position_ids)
        angles: Any = None
        for length in torch.unique(lengths).tolist():
            kind = ROPE_INIT_FUNCTIONS[self.rotary.rope_type]
            frequencies, scale = kind(self.rotary.config, x.device, seq_len=int(length))
            self.rotary.inv_freq = frequencies
            self.rotary.attention_scaling = scale
            turned = self._turn(self.rotary, x, position_ids)
            angles = turned if angles is None else _chosen(lengths == length, turned, angles)
        return angles

    def _lengths(self, positions: Tensor) -> Tensor:
        """(B, T) the length of the text that each token belongs to, as far as it matters."""
        if positions.shape[1] > 1:
            lengths = text_lengths(positions)
        elif _prompts:
            lengths = _prompts[-1].to(positions.device)[:, None].expand_as(positions)
        else:
            lengths = positions + 1
        if self.by_step:
            return torch.where(lengths > self.threshold, self.threshold + 1, self.threshold)
        return lengths.clamp(min=self.threshold)


def text_lengths(positions: Tensor) -> Tensor:
    """(B, T) tokens of the longest path of the tree that each token stands in.

    A tree, and a padded row, begins at position 0.

    >>> text_lengths(torch.tensor([[0, 1, 2, 3, 2, 0, 1]]))
    tensor([[4, 4, 4, 4, 4, 2, 2]])
    """
    starts = positions == 0
    starts[:, 0] = True
    tree = starts.long().cumsum(1) - 1
    most = torch.zeros_like(positions).scatter_reduce(1, tree, positions + 1, "amax", include_self=False)
    return most.gather(1, tree)


def _chosen(where: Tensor, new: Any, old: Any) -> Any:
    if isinstance(new, tuple):
        return tuple(_chosen(where, a, b) for a, b in zip(new, old, strict=True))
    return torch.where(where.view(*where.shape, *[1] * (new.dim() - where.dim())), new, old)


# --- ALiBi -------------------------------------------------------------------------------------------


def slope_factors(slopes: Tensor, kind: str, factor: float) -> Tensor:
    """(H,) what each head's slope is multiplied by, so that `factor` times the length is seen as before.

    `linear` is 1 / factor for all. `ntk_alibi` is ``factor ** -t``, where t is 0 for the steepest head, 1 for the
    flattest, and even in the logarithm between them: near words keep their distances, far ones move together.
    """
    if kind == "linear":
        return torch.full_like(slopes, 1 / factor)
    logs = slopes.double().log()
    share = (logs.max() - logs) / (logs.max() - logs.min()).clamp(min=1e-12)
    return (factor**-share).to(slopes.dtype)


def _scale_slopes(lm: nn.Module, scaling: dict[str, Any]) -> None:
    for module in lm.modules():
        for plain, scaled in ((BloomModel, _ScaledBloom), (MptModel, _ScaledMpt)):
            if type(module) is plain:
                module.__class__ = scaled
                model: Any = module
                model.alibi_scaling = (scaling["rope_type"], float(scaling["factor"]))


class _ScaledBloom(BloomModel):
    """Bloom with other slopes: a mask is always given, so that the biases are always made here."""

    alibi_scaling: tuple[str, float]

    def build_alibi_tensor(self, attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        biases = super().build_alibi_tensor(attention_mask, num_heads, torch.float32)
        ones = torch.ones(1, 2, device=attention_mask.device)
        slopes = super().build_alibi_tensor(ones, num_heads, torch.float32)[:, 0, 1]
        factors = slope_factors(slopes, *self.alibi_scaling).repeat(len(attention_mask))
        return (biases * factors[:, None, None]).to(dtype)

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        given = input_ids if input_ids is not None else kwargs["inputs_embeds"]
        if kwargs.get("attention_mask") is None:
            past = kwargs.get("past_key_values")
            length = given.shape[1] + (0 if past is None else past.get_seq_length())
            kwargs["attention_mask"] = torch.ones(len(given), length, dtype=torch.int64, device=given.device)
        return super().forward(input_ids, **kwargs)


class _ScaledMpt(MptModel):
    """MPT with other slopes."""

    alibi_scaling: tuple[str, float]

    def build_mpt_alibi_tensor(self, *args: Any, **kwargs: Any) -> Tensor:
        biases: Tensor = super().build_mpt_alibi_tensor(*args, **kwargs)  # (H, 1, T), 0 at the last place
        slopes = -biases[:, 0, -2]
        return biases * slope_factors(slopes, *self.alibi_scaling)[:, None, None]


# --- tables ------------------------------------------------------------------------------------------


def _make_tables(lm: nn.Module, config: Any, scaling: dict[str, Any]) -> None:
    """Sines and cosines of scaled frequencies in place of each layer's own table."""
    for module in lm.modules():
        if "embed_positions" in module._buffers:
            old: Any = module._buffers["embed_positions"]
            stand_in = LlamaConfig(
                head_dim=old.shape[1],
                max_position_embeddings=config.max_position_embeddings,
                rope_parameters={"rope_theta": 10000.0, **scaling},
            )
            frequencies, scale = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](stand_in)
            angles = torch.arange(len(old)).float()[:, None] * frequencies
            table = torch.cat([angles.sin(), angles.cos()], 1) * scale
            module._buffers["embed_positions"] = table.to(old.dtype).to(old.device)
