"""Whether the texts of a run fit into the positions that its model has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from espalier.data.preflight.look import Part
from espalier.errors import UserError
from espalier.models.adapters.virtual import virtual_tokens
from espalier.models.encoder_decoder import is_encoder_decoder
from espalier.models.positions.rope import TABLES, stated_length

_LEARNED = ("wpe", "embed_positions", "position_embeddings", "block_position_embeddings")
"""Names of tables with a row a position."""


def check_positions(lm: nn.Module, data: Iterable[Part], new_tokens: int, say: Callable[[str], None]) -> None:
    """Say where texts are longer than the model was made for, or stop where it has no position for them.

    Args:
        lm: the model that is trained.
        data: the parts of the run's data.
        new_tokens: how many tokens may follow a prompt.
        say: told one line.

    Raises:
        UserError: the model has a table of positions, and a text goes beyond it.
    """
    config: Any = lm.config
    limit = stated_length(config)
    parts = [part for part in data if part.unit == "tokens"]
    if limit is None or not parts or is_encoder_decoder(lm):  # whose two stacks each have their own
        return
    virtual = virtual_tokens(lm)
    limit -= 0 if virtual is None else virtual.length
    longest = max(part.lengths["longest"] for part in parts) + new_tokens
    if longest <= limit:
        return
    what = f"a text of {longest:,} tokens"
    if new_tokens:
        what = f"a prompt of {longest - new_tokens:,} tokens with {new_tokens:,} new ones"
    if config.model_type in TABLES or _has_table(lm):
        key = "max_prompt_length" if new_tokens else "cutoff_len"
        raise UserError(
            f"{what}, and {config.model_type} has {limit:,} positions. Set {key}: {limit - new_tokens}, and "
            "overlong: drop or trim for what is longer."
        )
    say(
        f"{what}, and the model is made for {limit:,}: what lies beyond is read badly at first. "
        "`rope_scaling: yarn` stretches its positions; cutoff_len bounds the texts."
    )


def _has_table(lm: nn.Module) -> bool:
    return any(
        name.rsplit(".", 1)[-1] in _LEARNED and isinstance(module, nn.Embedding)
        for name, module in lm.named_modules()
    )
