"""Two models on the same questions: the paired difference with its interval, and McNemar's test.

Pairing takes the difficulty of the questions out of the error (Miller 2024, "Adding Error Bars to Evals"). McNemar's
exact test (1947) asks how likely so lopsided a split of the disagreements is if both models were equally good.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from espalier.exam.numbers.tables import first_metric
from espalier.maths.metrics import paired_difference
from espalier.screen import safe


def compare(out: Path, every: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each pair of models on each task that both have; `every`: results by folder below `out`."""
    pairs = []
    for a, b in combinations(every, 2):
        for task, row in every[a]["tasks"].items():
            metric = first_metric(row)
            if task not in every[b]["tasks"] or metric is None:
                continue
            first, second = (numbers_by_question(out / folder / f"{task}.jsonl", metric) for folder in (a, b))
            shared = [key for key in first if key in second]
            if len(shared) > 1:
                pairs.append(
                    {"task": task, "metric": metric, "a": a, "b": b}
                    | paired([first[k] for k in shared], [second[k] for k in shared])
                )
    return pairs


def paired(a: list[float], b: list[float]) -> dict[str, Any]:
    """b minus a on the same questions.

    Returns:
        n, the means, difference with standard error and 95 % interval; for right-or-wrong numbers also how many
        only one of both has right, and McNemar's exact two-sided p.

    >>> found = paired([1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1])
    >>> found["only_a"], found["only_b"], round(found["mcnemar_p"], 3)
    (1, 4, 0.375)
    """
    difference = paired_difference(a, b)
    numbers: dict[str, Any] = {
        "n": difference.n,
        "mean_a": sum(a) / len(a),
        "mean_b": sum(b) / len(b),
        "difference": difference.value,
        "stderr": difference.stderr,
        "low": difference.low,
        "high": difference.high,
    }
    if {*a, *b} <= {0.0, 1.0}:
        only_a = sum(x > y for x, y in zip(a, b, strict=True))
        only_b = sum(x < y for x, y in zip(a, b, strict=True))
        numbers |= {"only_a": only_a, "only_b": only_b, "mcnemar_p": mcnemar(only_a, only_b)}
    return numbers


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: twice the smaller binomial tail at 1/2, at most 1.

    >>> mcnemar(0, 0), round(mcnemar(2, 10), 4)
    (1.0, 0.0386)
    """
    n = only_a + only_b
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        for k in range(min(only_a, only_b) + 1)
    )
    return min(1.0, 2 * sum(math.exp(log - n * math.log(2)) for log in logs))


def numbers_by_question(path: Path, metric: str) -> dict[str, float]:
    """A number for each question with a known answer, by its id."""
    numbers: dict[str, float] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if metric in row.get("metrics", {}):
                numbers[row["id"]] = row["metrics"][metric]
            elif metric == "accuracy" and row.get("gold") is not None:
                numbers[row["id"]] = float(row["prediction"] == row["gold"])
    return numbers


def comparison_table(pairs: list[dict[str, Any]]) -> Table:
    """One line a task and pair: the difference with its interval; p where answers are right or wrong."""
    models = list(dict.fromkeys((pair["a"], pair["b"]) for pair in pairs))
    made = Table(title="Paired by question", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("exam", "n", "first", "second", "second - first [95 %]", "p"):
        made.add_column(column, justify="left" if column == "exam" else "right", overflow="fold")
    for a, b in models:
        made.add_row(Text.assemble((safe(b), "bold"), safe(f" against {a}")), *[""] * 5)
        for pair in pairs:
            if (pair["a"], pair["b"]) != (a, b):
                continue
            made.add_row(
                "  " + pair["task"],
                str(pair["n"]),
                f"{pair['mean_a']:.3f}",
                f"{pair['mean_b']:.3f}",
                f"{pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]",
                f"{pair['mcnemar_p']:.3f}" if "mcnemar_p" in pair else "-",
            )
    return made
