"""Which weights stay as they are: the lowest blocks, or all but those that are named."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from espalier.errors import UserError
from espalier.models.encoder_decoder import is_encoder_decoder


def stacks(lm: nn.Module) -> list[nn.ModuleList]:
    """The lists of transformer blocks: one, or an encoder's and its decoder's.

    Raises:
        ValueError: no list of as many modules as the configuration has layers.
    """
    if is_encoder_decoder(lm):
        halves = (lm.get_encoder(), lm.get_decoder())  # type: ignore[operator]
        return [next(m for m in half.children() if isinstance(m, nn.ModuleList)) for half in halves]
    config: Any = lm.config
    layers = int(config.get_text_config().num_hidden_layers)
    for module in lm.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return [module]
    raise ValueError(f"{type(lm).__name__}: no list of {layers} blocks found")


def blocks(lm: nn.Module) -> list[nn.Module]:
    """The transformer blocks, lowest first; an encoder's before its decoder's. Raises as `stacks`."""
    return [block for stack in stacks(lm) for block in stack]


def freeze_lowest(lm: nn.Module, ratio: float, *, embeddings: bool = True) -> int:
    """Freeze the lowest `ratio` of the blocks, rounded up, and the embeddings; returns how many blocks are frozen.

    Nothing below the first trainable block needs a gradient then, so autograd neither runs there nor keeps
    activations.

    Args:
        lm: changed in place.
        ratio: 0 to 1.
        embeddings: False trains them: gradients go through the frozen blocks, whose activations are kept.
    """
    stack = blocks(lm)
    frozen = math.ceil(ratio * len(stack) - 1e-9)  # 0.55 * 20 is a little more than 11
    if frozen == 0:
        return 0
    lowest = stack[:frozen]
    kept = {id(p) for block in stack[frozen:] for p in block.parameters()}
    for module in [*lowest, *([lm.get_input_embeddings()] if embeddings else [])]:  # type: ignore[operator]
        for parameter in module.parameters():
            if id(parameter) not in kept:
                parameter.requires_grad_(False)
    for name, parameter in lm.named_parameters():
        if embeddings and any(part in name for part in ("wpe", "position_embeddings", "embed_positions")):
            parameter.requires_grad_(False)
    return frozen


def train_only(
    lm: nn.Module, *, layers: int | None, modules: Sequence[str], extra: Sequence[str]
) -> list[str]:
    """Freeze all weights but those that are named; returns the names of the trained ones.

    Args:
        layers: the highest so many blocks, or the lowest when negative; None: all places.
        modules: parts of a path, ends of it, or patterns over it (``mlp``, ``self_attn.q_proj``, ``.*norm.*``); inside
            the blocks where `layers` is given. () or ``["all"]``: everything there.
        extra: the same, for parts outside of the blocks.

    Raises:
        UserError: more blocks than there are, or a name that matches nothing, with what exists.
    """
    names = [name for name, _ in lm.named_parameters()]
    paths = {id(module): name for name, module in lm.named_modules()}
    stack = [f"{paths[id(block)]}." for block in blocks(lm)]
    outside = [name for name in names if not name.startswith(tuple(stack))]
    if layers is not None and abs(layers) > len(stack):
        raise UserError(f"freeze_trainable_layers: {layers}, but this model has {len(stack)} blocks.")
    if layers is None:
        inside = names
    else:
        chosen = stack[len(stack) - layers :] if layers > 0 else stack[:-layers]
        inside = [name for block in chosen for name in names if name.startswith(block)]
    everything = not modules or list(modules) == ["all"]
    if everything and layers is None:
        trained: set[str] = set()  # only what `extra` names
    else:
        trained = set(inside if everything else _matched("freeze_trainable_modules", modules, inside))
    trained |= set(_matched("freeze_extra_modules", extra, outside))
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_(name in trained)
    return [name for name in names if name in trained]


def _matched(key: str, wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    matched = []
    for item in wanted:
        plain = [n for n in names if f".{item}." in f".{n}."]
        here = plain or [n for n in names if _fits(key, item, n)]
        if not here:
            parts = sorted({part for n in names for part in n.split(".") if not part.isdigit()})
            raise UserError(f"{key}: {item} matches no parameter. Parts that exist: {', '.join(parts)}.")
        matched += here
    return matched


def _fits(key: str, pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UserError(f"{key}: {pattern} is no regular expression ({error}).") from error


def freeze_head(lm: nn.Module) -> None:
    """Freeze the output head and what an adapter adds to it, but for a table that is the embeddings', too."""
    model: Any = lm
    table = model.get_input_embeddings().weight
    for parameter in model.get_output_embeddings().parameters():
        if parameter is not table:
            parameter.requires_grad_(False)
