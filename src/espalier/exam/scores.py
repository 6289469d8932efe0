"""From predictions to numbers: means with their standard errors, by subject and part, and what guessing reaches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from espalier.errors import UserError
from espalier.exam.scorer import Scored
from espalier.exam.task import Question


def predicted(scored: Scored, normalise: str) -> int:
    """The candidate with the highest sum (or mean) of logprobs; the first of equals.

    Raises:
        UserError: a score that is no number, of which no order follows.
    """
    if not all(math.isfinite(s) for s in scored.scores):
        raise UserError(f"the model gives {scored.scores} as logprobs: its weights are broken.")
    values = [s / n if normalise == "mean" else s for s, n in zip(scored.scores, scored.tokens, strict=True)]
    return max(range(len(values)), key=values.__getitem__)


@dataclass
class Moments:
    """Mean and standard error of numbers that are seen once, in constant memory."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        self.total += value
        self.squares += value * value

    @property
    def mean(self) -> float:
        return self.total / self.n

    @property
    def stderr(self) -> float:
        """s / sqrt(n) with the unbiased s; 0 for a single number, which says nothing about spread."""
        if self.n < 2:
            return 0.0
        variance = max(0.0, self.squares / self.n - self.mean**2) * self.n / (self.n - 1)
        return math.sqrt(variance / self.n)


@dataclass
class Tally:
    """What a task's questions add up to, in memory that does not grow with them.

    Attributes:
        metrics: by subject and metric.
        blind: 1 / candidates of each question, what guessing reaches.
        golds: how often each answer is the right one, by its label, or by its place where it has none.
    """

    metrics: dict[str, dict[str, Moments]] = field(default_factory=dict)
    blind: Moments = field(default_factory=Moments)
    golds: Counter[str] = field(default_factory=Counter)
    n: int = 0

    def add(self, question: Question, numbers: Mapping[str, float]) -> None:
        """Count one question with its numbers by metric."""
        self.n += 1
        mine = self.metrics.setdefault(question.group, {})
        for name, value in numbers.items():
            mine.setdefault(name, Moments()).add(value)
        if question.candidates:
            self.blind.add(1 / len(question.candidates))
        if question.candidates and question.gold is not None:
            self.golds[question.candidates[question.gold].label or str(question.gold)] += 1

    def summary(self, parts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """n, metrics with standard errors, chance and majority, and averages by subject and part.

        The metrics are micro averages (every question counts the same); ``macro_M`` is the mean of the
        subjects' means, whose standard error follows from theirs.
        """
        names = list(dict.fromkeys(name for mine in self.metrics.values() for name in mine))
        found: dict[str, Any] = {"n": self.n, "metrics": {}}
        for name in names:
            found["metrics"] |= _named(name, _pooled([mine[name] for mine in self.metrics.values()]))
        if names and len(self.metrics) > 1:
            for name in names:
                each = [mine[name] for mine in self.metrics.values()]
                found["metrics"] |= _named(f"macro_{name}", _averaged(each))
            found["subjects"] = {
                group: {"n": next(iter(mine.values())).n}
                | {k: v for name, m in mine.items() for k, v in _named(name, (m.mean, m.stderr)).items()}
                for group, mine in self.metrics.items()
                if mine
            }
            found["parts"] = {
                part: self._part(names, [self.metrics[g] for g in groups if g in self.metrics])
                for part, groups in parts.items()
                if any(g in self.metrics for g in groups)
            }
        if self.blind.n:
            found["chance"] = self.blind.mean
        if self.golds:
            found["majority"] = max(self.golds.values()) / self.n
        return found

    def _part(self, names: Sequence[str], members: Sequence[dict[str, Moments]]) -> dict[str, float]:
        part: dict[str, float] = {"n": sum(next(iter(m.values())).n for m in members)}
        for name in names:
            part |= _named(name, _pooled([m[name] for m in members]))
            part |= _named(f"macro_{name}", _averaged([m[name] for m in members]))
        return part


def _named(name: str, pair: tuple[float, float]) -> dict[str, float]:
    return {name: pair[0], f"{name}_stderr": pair[1]}


def _pooled(each: Sequence[Moments]) -> tuple[float, float]:
    whole = Moments(sum(m.n for m in each), sum(m.total for m in each), sum(m.squares for m in each))
    return whole.mean, whole.stderr


def _averaged(each: Sequence[Moments]) -> tuple[float, float]:
    return sum(m.mean for m in each) / len(each), math.sqrt(sum(m.stderr**2 for m in each)) / len(each)
