"""One more token for each row, by the settings of each.

B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from espalier.models.sampling.generate import Sampling, draw
from espalier.models.sampling.processors import biased, less_often, penalised
from espalier.serve.settings import AnswerSettings


class Allowed(Protocol):
    """What an answer may go on with."""

    def mask(self) -> Tensor:
        """(V,) bool, True for tokens that may come next."""
        ...

    def take(self, token: int) -> None:
        """This one has come."""
        ...


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was drawn.

    Attributes:
        id: its number.
        logprob: under the model's own distribution (temperature 1, nothing left out); 0 where nobody asked.
        alternatives: the likeliest tokens with theirs, if they were asked for.
    """

    id: int
    logprob: float = 0.0
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass
class Drawn:
    """What a row's next token depends on, beside its logits.

    Attributes:
        prompt: ids.
        uniforms: (steps,) in [0, 1), what its tokens are drawn by.
        written: tokens so far.
        allowed: what its grammar lets come next; None: anything.
    """

    settings: AnswerSettings
    prompt: Sequence[int]
    uniforms: Tensor
    written: list[int] = field(default_factory=list)
    allowed: Allowed | None = None


def draw_rows(logits: Tensor, rows: Sequence[Drawn]) -> list[Token | None]:
    """A token of each row, which depends on nothing but the row; None where its logits are no numbers.

    Args:
        logits: (B, V).
        rows: (B,).
    """
    logits = logits.float()
    processed = logits
    for at, row in enumerate(rows):
        own = _processed(logits[at], row)
        if own is not None:
            processed = processed.clone() if processed is logits else processed
            processed[at] = own
    sound = torch.isfinite(processed.amax(-1))
    processed = torch.where(sound[:, None], processed, 0.0)
    tokens = torch.empty(len(rows), dtype=torch.int64)
    alike: dict[tuple[float, float, int, float], list[int]] = {}
    for at, row in enumerate(rows):
        alike.setdefault(row.settings.shapes, []).append(at)
    for (temperature, top_p, top_k, min_p), members in alike.items():
        sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
        uniforms = torch.stack([rows[at].uniforms[len(rows[at].written)] for at in members]).to(logits.device)
        own = processed if len(members) == len(rows) else processed[members]
        tokens[members] = draw(own, uniforms, sampling)[0].cpu()
    return [
        _told(logits[at], row.settings.logprobs, int(tokens[at])) if is_sound else None
        for at, (row, is_sound) in enumerate(zip(rows, sound.tolist(), strict=True))
    ]


def _processed(logits: Tensor, row: Drawn) -> Tensor | None:
    """(V,) after the row's own penalties, bias and grammar; None where it has none."""
    settings, made = row.settings, logits
    if settings.repetition_penalty != 1:
        seen = torch.tensor(sorted({*row.prompt, *row.written}), device=logits.device)
        made = penalised(made, seen, settings.repetition_penalty)
    if (settings.presence_penalty or settings.frequency_penalty) and row.written:
        written = torch.tensor(row.written, device=logits.device)
        made = less_often(made, written, settings.presence_penalty, settings.frequency_penalty)
    if settings.logit_bias:
        made = biased(made, settings.logit_bias)
    if row.allowed is not None:
        made = made.masked_fill(~row.allowed.mask().to(made.device), -torch.inf)
    return None if made is logits else made


def _told(logits: Tensor, alternatives: int | None, token: int) -> Token:
    if alternatives is None:
        return Token(token)
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(min(alternatives, len(logprobs)))
    others = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Token(token, float(logprobs[token]), others)
