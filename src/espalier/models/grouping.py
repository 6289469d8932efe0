"""Which rows one attention call reads together: those of like length, since it reads all to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CALL = {"cpu": 200, "cuda": 20_000}
"""What one more attention call costs, in tokens of padding that could be read in the time."""


def call_cost(device: torch.device) -> int:
    """That of this device, in tokens."""
    return CALL.get(device.type, CALL["cuda"])


def alike(lengths: Sequence[int], call: int, counts: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Cut prompts, in the order given, into groups that are read at the least cost: (start, end) of each.

    A group costs its longest prompt times its prompts, plus `call`.

    Args:
        lengths: tokens of each.
        call: of one group, in tokens.
        counts: how often each stands there; () is once.
    """
    size = len(lengths)
    sizes = np.asarray(lengths, dtype=np.float64)
    before = np.concatenate([[0.0], np.cumsum(counts if len(counts) else np.ones(size))])
    best = np.zeros(size + 1)  # of the first n prompts
    starts = np.zeros(size + 1, dtype=np.int64)  # of their last group
    for end in range(1, size + 1):
        longest = np.maximum.accumulate(sizes[:end][::-1])[::-1]
        costs = best[:end] + longest * (before[end] - before[:end]) + call
        starts[end] = costs.argmin()
        best[end] = costs[starts[end]]
    groups, end = [], size
    while end:
        groups.append((int(starts[end]), end))
        end = int(starts[end])
    return groups[::-1]


@dataclass
class Group:
    """Prompts of like length, which one call attends to.

    Attributes:
        prompts: their numbers, in order.
        longest: tokens of the longest.
        mask: (P', 1, 1, L) of 0 and the least number, None where all are of one length.
        rows: (P' * C') the row of each query, C' being the most copies of any of these prompts; a copy that
            a prompt has not is stood in for by any row.
        copies: C'.
    """

    prompts: list[int]
    longest: int
    mask: Tensor | None
    rows: Tensor
    copies: int


def grouped(
    prompts: Sequence[int], lengths: Sequence[int], dtype: torch.dtype, device: torch.device
) -> list[Group]:
    """These prompts (numbers), in this order, in the cheapest groups; `lengths` of all prompts, by number."""
    groups = []
    for start, end in alike([lengths[p] for p in prompts], call_cost(device)):
        own = list(prompts[start:end])
        sizes = torch.tensor([lengths[p] for p in own], device=device)
        longest = int(sizes.max())
        mask = hidden(torch.arange(longest, device=device)[None] >= sizes[:, None], dtype)
        groups.append(Group(own, longest, mask, torch.empty(0, dtype=torch.int64), 0))
    return groups


def hidden(padding: Tensor, dtype: torch.dtype) -> Tensor | None:
    """(n, L), True at what is not to be seen, as what is added to scores: (n, 1, 1, L); None: all is seen."""
    if not bool(padding.any()):
        return None
    mask = torch.zeros(padding.shape, dtype=dtype, device=padding.device)
    return mask.masked_fill_(padding, torch.finfo(dtype).min)[:, None, None]


@dataclass
class Cohort:
    """Rows that stand side by side and have answers of like length.

    Attributes:
        start, end: the first row, and the one after the last.
        first: the place of the longest answer's first token.
        mask: (rows, 1, 1, places) of 0 and the least number, None where all began at `first`.
    """

    start: int
    end: int
    first: int
    mask: Tensor | None


def cohorts(born: Sequence[int], places: int, dtype: torch.dtype, device: torch.device) -> list[Cohort]:
    """Rows in the order in which they began, cut where one call more costs less than reading what is hidden.

    Args:
        born: the place of each row's first token, none before the row ahead of it.
        places: that are set aside for answers.
        dtype, device: of the masks.
    """
    times, counts = np.unique(np.asarray(born, dtype=np.int64), return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)]).tolist()
    made = []
    for first, last in alike([places - int(t) for t in times], call_cost(device), counts.tolist()):
        start, end = before[first], before[last]
        began = torch.tensor(born[start:end], device=device)[:, None]
        mask = hidden(torch.arange(places, device=device)[None] < began, dtype) if last - first > 1 else None
        made.append(Cohort(start, end, int(times[first]), mask))
    return made
