"""How many answers are sampled at a time: what each keeps, and what is free for it.

An answer keeps its keys and values and its share of its prompt's, and for a moment a few vectors as long as the
vocabulary. What is said here is an upper bound, so that what fits by it fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from espalier.errors import UserError
from espalier.models.forward import Traits
from espalier.models.sampling.decoding import READ, span, takes_rows
from espalier.models.sampling.generate import rows_in_memory
from espalier.models.sampling.own_cache import keeps_last_logits

ON_GPU = 512
"""Answers at a time on a GPU where memory allows: a step takes hardly longer than one of few."""

SHARE = 0.5
"""Of what is free, where nothing was asked for: the rest is for the passes of training."""

VECTORS = 10
"""Of 4 bytes and the vocabulary's length, that drawing a token has at a time: logits, probabilities, what is chosen, bins."""


@dataclass(frozen=True)
class Room:
    """How many answers are sampled at a time.

    Attributes:
        rows: answers.
        row: bytes of one, at most.
        free: bytes that there are for all.
    """

    rows: int
    row: int
    free: int

    def __str__(self) -> str:
        most = self.rows * self.row
        return (
            f"{self.rows} answers are sampled at a time: at most {_gigabytes(most)} of keys, values and logits, "
            f"of {_gigabytes(self.free)} that are free"
        )


def bytes_of_answer(
    lm: nn.Module, traits: Traits, longest_prompt: int, max_new_tokens: int, copies: int
) -> int:
    """The most that one of `copies` answers to a prompt takes while it is sampled; 0 where the model does not say its sizes."""
    sizes = _sizes(lm, "num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
    if sizes is None:
        return 0
    layers, heads, width, words = sizes
    (kinds,) = _sizes(lm, "num_key_value_heads") or [heads]
    (size,) = _sizes(lm, "head_dim") or [width // heads]
    token = 2 * layers * kinds * size * next(lm.parameters()).element_size()
    if takes_rows(lm, traits, longest_prompt + max_new_tokens):
        # Twice the prompt: new and old places stand side by side while prompts are put together.
        kept = token * (span(max_new_tokens) + -(-2 * longest_prompt // copies))
    else:
        # Twice one layer: transformers' cache makes a longer copy at each token.
        kept = token * (longest_prompt + max_new_tokens) * (layers + 1) // layers
        # All prompts are read at a time, and some models make all scores of attention.
        kept += 0 if keeps_last_logits(lm) else 4 * words * longest_prompt
        kept += longest_prompt * _between_layers(lm)
        kept += 0 if getattr(lm, "_supports_sdpa", False) else 20 * heads * longest_prompt**2
    return kept + 4 * VECTORS * words


def bytes_of_reading(lm: nn.Module) -> int:
    """What is passed between the layers while prompts are read, at most; 0 where the model does not say its sizes."""
    return READ.get(next(lm.parameters()).device.type, READ["cuda"]) * _between_layers(lm)


def _between_layers(lm: nn.Module) -> int:
    """Bytes of one token while it is read."""
    sizes = _sizes(lm, "hidden_size")
    if sizes is None:
        return 0
    (width,) = sizes
    (inner,) = _sizes(lm, "intermediate_size") or [4 * width]
    return 4 * (10 * width + 3 * inner)


def _sizes(lm: nn.Module, *keys: str) -> list[int] | None:
    """These numbers of the model's configuration; None where one is missing."""
    config: Any = lm.config
    config = config.get_text_config()
    found = [number for key in keys if isinstance(number := getattr(config, key, None), int) and number > 0]
    return found if len(found) == len(keys) else None


def room_for(
    lm: nn.Module, traits: Traits, lengths: tuple[int, int], copies: int, asked: int | None, free: int
) -> Room:
    """How many answers are sampled at a time.

    Args:
        lm, traits: of the model, on its device.
        lengths: tokens of the longest prompt, and of an answer at most.
        copies: answers to a prompt.
        asked: how many the user wants; None: as many as fit into half of what is free, 256 at most (a GPU: 512).
        free: bytes.

    Raises:
        UserError: so many, or a single one, do not fit.
    """
    longest_prompt, max_new_tokens = lengths
    row = bytes_of_answer(lm, traits, longest_prompt, max_new_tokens, copies)
    free = max(0, free - bytes_of_reading(lm))
    # Batch by batch all answers to a prompt go together.
    least = 1 if takes_rows(lm, traits, longest_prompt + max_new_tokens) else copies
    what = f"{longest_prompt} + {max_new_tokens} tokens"
    if asked is not None:
        wanted = max(asked, least)
        if row and wanted * row > free:
            fits = free // row
            cure = f"set it to {fits} at most, or" if fits >= least else "no number would do:"
            raise UserError(
                f"generation_batch_size {asked}: {wanted} answers at a time, each of {what}, can take "
                f"{_gigabytes(wanted * row)}, and {_gigabytes(free)} are free. Instead {cure} lower max_new_tokens or "
                "max_prompt_length."
            )
        return Room(wanted, row, free)
    device = next(lm.parameters()).device
    usual = ON_GPU if device.type == "cuda" else rows_in_memory(lm, max_new_tokens)
    if not row:
        return Room(max(usual, least), row, free)
    fits = int(SHARE * free) // row
    if fits < least:
        raise UserError(
            f"{least} answers at a time, each of {what}, can take {_gigabytes(least * row)}, more than half of the "
            f"{_gigabytes(free)} that are free. Lower max_new_tokens, max_prompt_length or group_size, or say "
            f"generation_batch_size: {least}, which leaves less to training."
        )
    # A power of two where memory is short, so that a little more or less of it changes nothing.
    return Room(max(least, usual if fits >= usual else 2 ** (fits.bit_length() - 1)), row, free)


def to_come(modules: list[nn.Module]) -> int:
    """Bytes that training them is going to take beside its passes: gradients and Adam's two moments, in float32."""
    trained = {id(p): p.numel() for module in modules for p in module.parameters() if p.requires_grad}
    return 12 * sum(trained.values())


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
