"""What quantising has cost and gained: two models with one vocabulary, on the same tokens, in turn.

V vocabulary, T tokens of a row.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from espalier.models.encoder_decoder import is_encoder_decoder
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample

Row = tuple[Sequence[int], Sequence[bool]]
"""Token ids of a text, and which of them the perplexity is of (never the first)."""

WRITTEN = 24
"""Tokens that are generated to take the time."""


@dataclass(frozen=True)
class Differences:
    """What two models say of the same tokens.

    Attributes:
        tokens: that all of it is of.
        logit_error_mean, logit_error_max: absolute differences of logits, each row's own mean taken out of it first,
            because a constant added to all logits says nothing.
        kl: from the first model to the second, in nats a token.
        same_choice: share of tokens where both find the same next token likeliest.
        perplexity, perplexity_after: of the text under the first and under the second.
    """

    tokens: int
    logit_error_mean: float
    logit_error_max: float
    kl: float
    same_choice: float
    perplexity: float
    perplexity_after: float


@dataclass(frozen=True)
class Comparison(Differences):
    """A model and its quantised copy.

    Attributes:
        read, read_after: tokens a second in one forward over the rows.
        written, written_after: tokens a second of one answer, written token by token.
        read_ratio, written_ratio: the copy's speed to the model's; medians over pairs.
    """

    read: float
    read_after: float
    read_ratio: float
    written: float
    written_after: float
    written_ratio: float


@torch.no_grad()
def differences(plain: nn.Module, small: nn.Module, rows: Sequence[Row]) -> Differences:
    """Both models on the rows; neither is changed.

    Args:
        plain, small: in the Hugging Face calling convention, on one device, evaluating, with one vocabulary.
        rows: texts of at least two tokens.
    """
    sums: dict[str, float] = dict.fromkeys(("n", "abs", "all", "kl", "same", "before", "after"), 0.0)
    worst = 0.0
    for tokens, scored in rows:
        for logits, other, labels in _windows(plain, small, tokens, scored):
            p, q = logits.log_softmax(-1), other.log_softmax(-1)
            gap = (logits - logits.mean(-1, keepdim=True)) - (other - other.mean(-1, keepdim=True))
            worst = max(worst, float(gap.abs().max()))
            sums["n"] += len(labels)
            sums["all"] += gap.numel()
            sums["abs"] += float(gap.abs().sum())
            sums["kl"] += float((p.exp() * (p - q)).sum())
            sums["same"] += float((p.argmax(-1) == q.argmax(-1)).sum())
            sums["before"] -= float(p.gather(1, labels[:, None]).sum())
            sums["after"] -= float(q.gather(1, labels[:, None]).sum())
    n = max(1.0, sums["n"])
    return Differences(
        int(sums["n"]),
        sums["abs"] / max(1.0, sums["all"]),
        worst,
        max(0.0, sums["kl"] / n),  # rounding may take it below
        sums["same"] / n,
        math.exp(min(700.0, sums["before"] / n)),
        math.exp(min(700.0, sums["after"] / n)),
    )


@torch.no_grad()
def compare(plain: nn.Module, small: nn.Module, rows: Sequence[Row], *, rounds: int = 3) -> Comparison:
    """`differences`, and how fast both are.

    Args:
        rounds: pairs of timed runs, after one to warm up.
    """
    found = differences(plain, small, rows)
    read, read_after, read_ratio = _speeds(_reading(plain, rows), _reading(small, rows), rounds)
    written, written_after, written_ratio = _speeds(_writing(plain, rows), _writing(small, rows), rounds)
    return Comparison(
        **asdict(found),
        read=read,
        read_after=read_after,
        read_ratio=read_ratio,
        written=written,
        written_after=written_after,
        written_ratio=written_ratio,
    )


def _windows(
    plain: nn.Module, small: nn.Module, tokens: Sequence[int], scored: Sequence[bool]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Logits (n, V) of both models where the next token is scored, and these tokens (n,)."""
    device = next(plain.parameters()).device
    ids = torch.tensor([list(tokens)], device=device)
    at = torch.tensor([i for i in range(1, len(tokens)) if scored[i]], dtype=torch.int64, device=device)
    if not len(at):
        return []
    logits, other = plain(input_ids=ids).logits[0], small(input_ids=ids).logits[0]
    return [
        (logits[part - 1].float(), other[part - 1].float(), ids[0, part]) for part in torch.split(at, 256)
    ]


Work = Callable[[], float]
"""Does something and says how many tokens a second."""


def _reading(lm: nn.Module, rows: Sequence[Row]) -> Work:
    tokens = max((list(tokens) for tokens, _ in rows), key=len)
    ids = torch.tensor([tokens], device=next(lm.parameters()).device)
    return lambda: len(tokens) / _seconds(lambda: lm(input_ids=ids))


def _writing(lm: nn.Module, rows: Sequence[Row]) -> Work:
    traits = probe(lm)
    tokens, scored = max(rows, key=lambda row: len(row[0]))
    # an encoder-decoder is asked with a whole question, up to the token that its answer begins after
    prompt = list(tokens[: list(scored).index(True) if is_encoder_decoder(lm) else 16])
    sampling = Sampling(WRITTEN, temperature=0)
    return lambda: WRITTEN / _seconds(lambda: sample(lm, traits, [prompt], sampling))


def _seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _speeds(one: Work, other: Work, rounds: int) -> tuple[float, float, float]:
    """Medians of both speeds and of their ratio (other to one), run in turn so that both meet the same machine."""
    pairs = [(one(), other()) for _ in range(rounds + 1)][1:]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )
