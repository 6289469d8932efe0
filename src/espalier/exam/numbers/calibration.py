"""Whether a reward model is as often right as it is sure: its chances of a pair against how many pairs it has right.

By Bradley and Terry 1952 the chance that an answer is preferred is the sigmoid of the margin between two rewards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

BINS = 10


def calibration(lines: Iterable[Mapping[str, Any]], bins: int = BINS) -> dict[str, Any] | None:
    """Pairs by how sure a model is of them, and the expected calibration error (Guo et al. 2017, eq. 3).

    The error is the mean over pairs of how far the accuracy of their bin is from its mean confidence. It is never below
    0: with few pairs a bin it is above 0 by chance alone.

    Args:
        lines: of an exam's ``TASK.jsonl``: ``scores`` of the answers, and what people said, ``preference``. Of two
            answers that people hold equal no pair is made; equal scores are half right.
        bins: of equal width between 0.5 and 1.

    Returns:
        ``error``, ``pairs`` and ``bins``, each ``{confidence, accuracy, n}`` with n > 0; None without a pair.

    >>> found = calibration(
    ...     [{"scores": [2.0, 0.0], "preference": [1, 0]}, {"scores": [0.0, 2.0], "preference": [1, 0]}]
    ... )
    >>> found["pairs"], found["bins"][0]["accuracy"], round(found["error"], 3)
    (2, 0.5, 0.381)
    """
    sums = [[0.0, 0.0, 0] for _ in range(bins)]
    for line in lines:
        scores, said = line.get("scores"), line.get("preference")
        if not scores or not said:
            continue
        for i, j in combinations(range(len(said)), 2):
            if said[i] == said[j]:
                continue
            margin = (scores[i] - scores[j]) * (1 if said[i] > said[j] else -1)
            sure = 1 / (1 + math.exp(-min(abs(margin), 700.0)))
            found = sums[min(bins - 1, int((sure - 0.5) * 2 * bins))]
            found[0] += sure
            found[1] += 0.5 if margin == 0 else float(margin > 0)
            found[2] += 1
    rows = [{"confidence": c / n, "accuracy": a / n, "n": n} for c, a, n in sums if n]
    pairs = sum(row["n"] for row in rows)
    if not pairs:
        return None
    error = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / pairs
    return {"error": error, "pairs": pairs, "bins": rows}
