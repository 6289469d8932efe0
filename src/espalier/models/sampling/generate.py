"""Sampling with a cache: prompts in, tokens and their logprobs out; what is sampled is what is trained.

Every row draws from uniform numbers of its own, made from its seed alone, so that an answer does not
depend on which others were sampled with it, in which batch, or on which rank. Its numbers are as near as
rounding lets them be: a matrix product over other rows, or over padding, adds in another order. In float32 that
is about 1e-6 of a logprob, so that another token is drawn once in some hundred thousand; in bfloat16 it is some
1e-2, and two batches can part ways after a few dozen tokens.

Rows that end are replaced by those that wait, where the model's keys and values are in our memory; other ways
of decoding sample batch by batch (their docstrings say why).

B rows (P prompts times C copies), V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import UserError
from espalier.models.forward import Traits
from espalier.models.sampling.decoding import ByMemory, Decoder, make_decoder, span, takes_rows
from espalier.models.sampling.rows import Present, Queue

ROOM = 2**28
"""Bytes for keys, values and logits of what is sampled at a time; see `rows_in_memory`."""

KEPT = 0.85
"""Finished rows are dropped when no more than this share is left: moving the others costs about a step."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: at least 1.
        temperature: 0 takes the likeliest token; 1 samples from the model's own distribution.
        top_p: the smallest set of likeliest tokens with at least this mass, in (0, 1]; 1 is all.
        top_k: only so many likeliest tokens; 0 is all.
        min_p: only tokens that are at least so probable as this share of the likeliest (Nguyen et al. 2024); 0 is all.
        stop: tokens that end an answer; the one that does is part of it.
        likeliest: whether the last copy of each prompt takes the likeliest token each time, the others being drawn.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[int, ...] = ()
    likeliest: bool = False
    min_p: float = 0.0


@dataclass
class Completion:
    """One answer.

    Attributes:
        tokens: what was sampled, the stop token included.
        logprobs: of each, under the distribution at this temperature before top_p and top_k.
        ended: whether a stop token ended it, and not the limit.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False


def sample(
    lm: nn.Module,
    traits: Traits,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    copies: int = 1,
    seeds: Sequence[int] = (),
    rows: int = 64,
) -> list[list[Completion]]:
    """Sample `copies` answers to each prompt; ``result[i][c]`` is copy c of prompt i.

    Args:
        lm: a causal language model, left in the mode it is in.
        traits: from the probe.
        prompts: token ids, none empty.
        sampling: how.
        copies: answers a prompt.
        seeds: one for each prompt; () seeds by the prompt's place.
        rows: how many answers are sampled at a time; where none can come in the place of others, the copies of one
            prompt at least.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    by_prompt = [[Completion() for _ in range(copies)] for _ in prompts]
    lengths = [len(prompts[i]) + sampling.max_new_tokens for i in order]
    apart = len(order)  # so many, the longest ones, are too long for rows to be replaced, or all are
    if order and takes_rows(lm, traits, lengths[-1]):
        apart = next(n for n, longest in enumerate(lengths) if takes_rows(lm, traits, longest))
    others, refilled = order[:apart], order[apart:]
    size = max(1, rows // copies)
    for chosen in [*(others[start : start + size] for start in range(0, apart, size)), refilled]:
        numbers = [seeds[i] if seeds else i for i in chosen]
        ids = [prompts[i] for i in chosen]
        most = rows if chosen is refilled else 0
        for row, token, logprob, ended in decode(
            lm, traits, ids, sampling, copies=copies, seeds=numbers, most=most
        ):
            answer = by_prompt[chosen[row // copies]][row % copies]
            answer.tokens.append(token)
            answer.logprobs.append(logprob)
            answer.ended = ended
    return by_prompt


def rows_in_memory(lm: nn.Module, max_new_tokens: int) -> int:
    """How many answers may be sampled at a time where a small model is to be fast: as many as `ROOM` bytes hold, from 64 to
    256. A step of few rows of a small model is mostly overhead; keys, values and logits of a large one are memory."""
    config: Any = getattr(lm, "config", None)
    layers, width, words = (
        getattr(config, key, None) for key in ("num_hidden_layers", "hidden_size", "vocab_size")
    )
    if not (isinstance(layers, int) and isinstance(width, int) and isinstance(words, int)):
        return 64
    row = 4 * (2 * layers * width * max_new_tokens + 4 * words)
    return max(64, min(256, ROOM // row))


@torch.no_grad()
def decode(
    lm: nn.Module,
    traits: Traits,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    copies: int = 1,
    seeds: Sequence[int] = (0,),
    most: int = 0,
) -> Iterator[tuple[int, int, float, bool]]:
    """Yield (row, token, logprob, whether it ends the answer) as the tokens come; row = prompt * C + copy.

    Args:
        most: rows at a time, the others taking the places of those that end, in their order; 0: all at once.
            Prompts of like length should then stand side by side, and the model must take rows (`takes_rows`).
    """
    if not prompts:
        return
    training = lm.training
    lm.eval()
    try:
        yield from _decode(lm, traits, Queue(prompts, copies, seeds, sampling.max_new_tokens, most), sampling)
    finally:
        lm.train(training)


def _decode(
    lm: nn.Module, traits: Traits, queue: Queue, sampling: Sampling
) -> Iterator[tuple[int, int, float, bool]]:
    device = next(lm.parameters()).device
    longest = sampling.max_new_tokens
    begin, copies = queue.first()
    decoder = make_decoder(lm, traits, begin, copies, longest, queue.most)
    present = queue.take(len(begin) * copies, device, sampling.likeliest)
    stop = torch.tensor(sampling.stop, device=device)
    logits, present = _filled(decoder, decoder.prompt_logits(), present, queue, sampling)
    for step in itertools.count():
        if not bool(torch.isfinite(logits.amax(-1)).all()):
            raise UserError(
                "the model gives logits that are no numbers, so no token can be drawn: its weights are broken."
            )
        at = present.written.clamp(max=longest - 1)  # rows that have ended run on until they are dropped
        tokens, logprobs = draw(logits, present.uniforms.gather(1, at.to(device)[:, None])[:, 0], sampling)
        ends = torch.isin(tokens, stop) if len(sampling.stop) else torch.zeros_like(tokens, dtype=torch.bool)
        told = tokens.tolist(), logprobs.tolist(), ends.tolist(), present.alive.tolist()
        for name, token, logprob, end, living in zip(present.names, *told, strict=True):
            if living:
                yield name, token, logprob, end
        present.written += 1
        present.alive &= ~ends.cpu() & (present.written < longest)
        rows = present.alive.nonzero()[:, 0]
        if not len(rows) and not queue.waits:
            return
        full = queue.most if queue.waits else len(present.alive)
        late = int(present.written.max()) > span(longest)
        if (late or len(rows) <= KEPT * full) and _dropped(decoder, rows, queue):
            tokens, present = tokens[rows.to(device)], present.kept(rows)
        logits = decoder.next_logits(tokens, step) if len(tokens) else logits[:0]
        logits, present = _filled(decoder, logits, present, queue, sampling)


def _filled(
    decoder: Decoder, logits: Tensor, present: Present, queue: Queue, sampling: Sampling
) -> tuple[Tensor, Present]:
    """The same with rows that waited in all places that are free, and their logits (B, V)."""
    free = queue.most - len(present.names)
    if free <= 0 or not queue.waits:
        return logits, present
    assert isinstance(decoder, ByMemory), "only then is there a bound of rows"
    unread = queue.unread
    new = queue.take(free, logits.device, sampling.likeliest)
    of_row = [name // queue.copies for name in new.names]
    added = decoder.add(queue.prompts[unread : of_row[-1] + 1], of_row)
    return torch.cat([logits, added]), present.joined(new)


def _dropped(decoder: Decoder, rows: Tensor, queue: Queue) -> bool:
    """Go on with these rows (B',) alone, where the decoder can."""
    if isinstance(decoder, ByMemory):
        return decoder.keep(rows, held=queue.cut)
    return decoder.keep(rows)


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token a row by the inverse of its distribution's sums, with its logprob before truncation.

    Args:
        logits: (B, V).
        uniforms: (B,) in [0, 1); with `likeliest` a row below 0 takes its likeliest token.

    Returns:
        tokens (B,) int64 and logprobs (B,) float32. At temperature 0 the logprob is the model's own.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    probs = logits.softmax(-1)
    chosen = probs
    if sampling.top_p < 1:
        chosen = _nucleus(logits, probs, sampling.top_p)
    if 0 < sampling.top_k < probs.shape[1]:
        best, at = chosen.topk(sampling.top_k, dim=-1)
        chosen = torch.zeros_like(probs).scatter_(1, at, best)
    if sampling.min_p > 0:
        chosen = torch.where(probs >= sampling.min_p * probs.amax(-1, keepdim=True), chosen, 0.0)
    tokens = _by_sums(chosen, uniforms)
    if sampling.likeliest:
        tokens = torch.where(uniforms < 0, logits.argmax(-1), tokens)
    return tokens, probs.gather(1, tokens[:, None])[:, 0].log()


def _nucleus(logits: Tensor, probs: Tensor, top_p: float) -> Tensor:
    """The same probabilities with those outside of the smallest set of mass `top_p` set to 0.

    Sorting a vocabulary takes longer than a small model's step. So tokens are put into bins of 1/16 nat
    below the likeliest, and only the bin in which the mass is reached is sorted.
    """
    gaps = logits.amax(-1, keepdim=True) - logits
    bins = (gaps * 16).clamp_(max=1023).long()
    mass = probs.new_zeros(len(probs), 1024).scatter_add_(1, bins, probs)
    above = mass.cumsum(-1) - mass
    edge = (above < top_p).sum(-1, keepdim=True) - 1
    inside = bins == edge
    best, at = torch.where(inside, probs, -1.0).topk(int(inside.sum(-1).max()), dim=-1)
    before = above.gather(1, edge) + best.cumsum(-1) - best
    reached = (best >= 0) & (before < top_p)  # the likeliest always stays
    kept = (bins < edge).scatter(1, at, reached)
    return torch.where(kept, probs, 0.0)


BLOCK = 128


def _by_sums(weights: Tensor, uniforms: Tensor) -> Tensor:
    """(B,): the token at which the running sum of the weights (B, V) passes the uniform share of their total.

    The sums of blocks say in which block, and only that one is summed token by token.
    """
    rows, size = weights.shape
    blocks = nn.functional.pad(weights, (0, -size % BLOCK)).view(rows, -1, BLOCK)
    masses = blocks.sum(-1).double()
    block, left = _passed(masses, uniforms.double()[:, None] * masses.sum(-1, keepdim=True))
    inside, _ = _passed(blocks[torch.arange(rows, device=block.device), block].double(), left)
    return block * BLOCK + inside


def _passed(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) where the running sum of (B, n) passes the target, and what is left of the target there (B, 1)."""
    sums = weights.cumsum(-1)
    # At or above the last sum by rounding only; what has no weight is never taken.
    below = sums[:, -1:].nextafter(torch.zeros((), dtype=sums.dtype, device=sums.device))
    at = torch.searchsorted(sums, target.minimum(below).clamp(min=0), right=True)
    return at[:, 0], target - (sums - weights).gather(1, at)
