"""Whether a reward model is as often right as it is sure: its chances of a pair against how many pairs it has right.

By Bradley and Terry 1952 the chance that an answer is preferred is the sigmoid of the margin between two rewards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, pairwise
from typing import Any

BINS = 10
"""Of as many pairs each: bins of equal width hold one pair or two where a model is mostly sure, and show their luck."""

LEAST = 10
"""Pairs of a bin."""


def calibration(lines: Iterable[Mapping[str, Any]], bins: int = BINS) -> dict[str, Any] | None:
    """Pairs by how sure a model is of them, and the expected calibration error (Guo et al. 2017, eq. 3; bins of equally
    many pairs as in Nguyen & O'Connor 2015).

    The error is the mean over pairs of how far the accuracy of their bin is from its mean confidence. It is never below
    0: with few pairs a bin it is above 0 by chance alone.

    Args:
        lines: of an exam's ``TASK.jsonl``: ``scores`` of the answers, and what people said, ``preference``. Of two
            answers that people hold equal no pair is made; equal scores are half right.
        bins: at most; fewer where they would hold less than `LEAST` pairs.

    Returns:
        ``error``, ``pairs`` and ``bins``, each ``{confidence, accuracy, n}`` with n > 0; None without a pair.

    >>> found = calibration(
    ...     [{"scores": [2.0, 0.0], "preference": [1, 0]}, {"scores": [0.0, 2.0], "preference": [1, 0]}]
    ... )
    >>> found["pairs"], found["bins"][0]["accuracy"], round(found["error"], 3)
    (2, 0.5, 0.381)
    """
    pairs = sorted(pair for line in lines for pair in _pairs(line))
    if not pairs:
        return None
    count = max(1, min(bins, len(pairs) // LEAST))
    ends = [round(len(pairs) * number / count) for number in range(count + 1)]
    rows = []
    for start, end in pairwise(ends):
        n = end - start
        sure, right = (sum(pair[at] for pair in pairs[start:end]) / n for at in (0, 1))
        rows.append({"confidence": sure, "accuracy": right, "n": n})
    error = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(pairs)
    return {"error": error, "pairs": len(pairs), "bins": rows}


def _pairs(line: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """(how sure, how right) of each pair of a prompt's answers."""
    scores, said = line.get("scores"), line.get("preference")
    if not scores or not said:
        return
    for i, j in combinations(range(len(said)), 2):
        if said[i] != said[j]:
            margin = (scores[i] - scores[j]) * (1 if said[i] > said[j] else -1)
            sure = 1 / (1 + math.exp(-min(abs(margin), 700.0)))
            yield sure, 0.5 if margin == 0 else float(margin > 0)
