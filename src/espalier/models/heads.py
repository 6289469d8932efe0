"""Scalar heads (reward models, critics) and the log-probabilities of a language-model head.

N rows of hidden states, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**27
"""Logits that are held at once: 512 MiB in float32."""

SMALL_CHUNK = 2**25
"""The same where nothing is kept for a backward: the smaller, the more of it stays in a cache."""


def whole_shape(weight: Tensor) -> torch.Size:
    """The shape of a weight, of which ZeRO-3 leaves an empty tensor where it is not gathered."""
    shape: torch.Size = getattr(weight, "ds_shape", weight.shape)
    return shape


def _width(head: nn.Module) -> int:
    """V, or 1 where a head does not say it."""
    weight = getattr(head, "weight", None)
    return whole_shape(weight)[0] if isinstance(weight, Tensor) else 1


class ScalarHead(nn.Linear):
    """One number from a hidden state, without bias; weights start at std 1 / (d + 1) (Stiennon et al. 2020).

    Runs in float32 whatever the autocast: a margin between two rewards is small against their size.

    Attributes:
        score_at: at which token an answer's number is meant to be read, as `data.encode.scored` names them; None where
            nobody has said.
        offset: (1,) what is added to every number, for a head of another project that has a bias; never trained.
        moments: mean and standard deviation (> 0) of the scores of answers that it was not trained on; None where nobody
            has measured them.
    """

    offset: Tensor | None
    moments: tuple[float, float] | None

    def __init__(self, hidden_size: int, score_at: str | None = None, offset: Tensor | None = None) -> None:
        super().__init__(hidden_size, 1, bias=False)
        self.score_at, self.moments = score_at, None
        self.register_buffer("offset", offset, persistent=False)
        nn.init.normal_(self.weight, std=1 / (hidden_size + 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, d) to (N,)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float(), self.offset)[:, 0]

    @torch.no_grad()
    def rescale(self, mean: float, deviation: float) -> None:
        """Say (x - mean) / deviation from now on where it said x."""
        offset = torch.zeros(1, device=self.weight.device) if self.offset is None else self.offset
        self.weight.div_(deviation)
        self.offset, self.moments = (offset - mean) / deviation, None


def label_logprobs(
    logits: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    entropy: bool,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Logprob of each label (N,) and, on request, the entropy (N,) in nats of each distribution.

    Args:
        logits: (N, V).
        labels: (N,) int64.
        temperature: of the distribution that is meant, > 0, or (N,) of each; 1 is the model's own.
        entropy: whether to compute it; it carries gradients.
        label_smoothing: this share of each logprob is the mean over the vocabulary instead; not with entropy.
    """
    logits = logits.float()
    if isinstance(temperature, Tensor):
        logits = logits / temperature[:, None]
    elif temperature != 1.0:
        logits = logits / temperature
    if not entropy:
        loss = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        return -loss, None
    assert not label_smoothing
    logprobs = logits.log_softmax(-1)
    return logprobs.gather(1, labels[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def chunked_logprobs(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    entropy: bool,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """`label_logprobs` of ``head(hidden)`` without ever holding more than `CHUNK_ELEMENTS` logits.

    Several chunks are computed again in the backward instead of being kept.
    """

    def part(hidden: Tensor, labels: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor | None]:
        return label_logprobs(head(hidden), labels, temperature, entropy, label_smoothing)

    rows = max(1, CHUNK_ELEMENTS // max(1, _width(head)))
    if len(hidden) <= rows:
        return part(hidden, labels, temperature)
    pieces = torch.split(hidden, rows)
    of_each: Sequence[float | Tensor] = [temperature] * len(pieces)
    if isinstance(temperature, Tensor):
        of_each = torch.split(temperature, rows)
    parts = [
        checkpoint(part, h, t, d, use_reentrant=False) if torch.is_grad_enabled() else part(h, t, d)
        for h, t, d in zip(pieces, torch.split(labels, rows), of_each, strict=True)
    ]
    entropies = [e for _, e in parts if e is not None]
    return torch.cat([logprobs for logprobs, _ in parts]), torch.cat(entropies) if entropies else None


def shared_logprobs(
    head: nn.Module, hidden: Tensor, read_at: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Logprob of each label (N,) under ``head(hidden[read_at])``, and whether no token is likelier (N,).

    A place that is read many times costs one row of logits.

    Without gradients. The candidates of a question, and all labels of a classification, begin at one place.

    Args:
        hidden: (rows, d).
        read_at, labels: (N,) int64.
    """
    places, which = torch.unique(read_at, return_inverse=True)
    order = which.argsort(stable=True)
    rows = max(1, SMALL_CHUNK // max(1, _width(head)))
    logprobs = torch.empty(len(labels), dtype=torch.float32, device=labels.device)
    greedy = torch.empty(len(labels), dtype=torch.bool, device=labels.device)
    for start in range(0, len(places), rows):
        logits = head(hidden[places[start : start + rows]]).float()
        mine = order[(which[order] >= start) & (which[order] < start + rows)]
        row = which[mine] - start
        of_labels = logits[row, labels[mine]]
        # In place: half the time of logsumexp, which writes the differences elsewhere.
        largest = logits.amax(-1, keepdim=True)
        total = logits.sub_(largest).exp_().sum(-1).log_() + largest[:, 0]
        logprobs[mine] = of_labels - total[row]
        greedy[mine] = of_labels == largest[row, 0]
    return logprobs, greedy
