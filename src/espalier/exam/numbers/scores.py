"""From predictions to numbers: means with their standard errors, by subject and part, and what guessing reaches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from espalier.errors import UserError
from espalier.exam.answers.scorer import Scored
from espalier.maths.ratio import Moments


def predicted(scored: Scored, normalise: str) -> int:
    """The candidate with the highest sum (or mean) of logprobs; the first of equals.

    Raises:
        UserError: a score that is no number, of which no order follows.
    """
    if not all(math.isfinite(s) for s in scored.scores):
        raise UserError(f"the model gives {scored.scores} as logprobs: its weights are broken.")
    values = [s / n if normalise == "mean" else s for s, n in zip(scored.scores, scored.tokens, strict=True)]
    return max(range(len(values)), key=values.__getitem__)


LN2 = math.log(2)

Numbers = dict[str, float | None]
"""Metrics and their standard errors by name; a metric of a single question has none."""

Number = float | tuple[float, float]
"""What one question adds to a metric: a number, or x and w of a ratio."""


@dataclass
class Tally:
    """What a task's questions add up to, in memory that does not grow with them.

    Attributes:
        metrics: by subject and metric.
        blind: of each question, what guessing reaches.
        golds: how often each answer is the right one, by its label, or by its place where it has none.
        n: questions with numbers.
        unjudged: questions without any: no right answer is known.
    """

    metrics: dict[str, dict[str, Moments]] = field(default_factory=dict)
    blind: Moments = field(default_factory=Moments)
    golds: Counter[str] = field(default_factory=Counter)
    n: int = 0
    unjudged: int = 0

    def add(
        self, numbers: Mapping[str, Number], *, group: str = "", chance: float | None = None, gold: str = ""
    ) -> None:
        """Count one question.

        Args:
            numbers: by metric.
            group: its subject.
            chance: what guessing reaches.
            gold: a name of the right answer.
        """
        if not numbers:
            self.unjudged += 1
            return
        self.n += 1
        mine = self.metrics.setdefault(group, {})
        for name, value in numbers.items():
            mine.setdefault(name, Moments()).add(*(value if isinstance(value, tuple) else (value,)))
        if chance is not None:
            self.blind.add(chance)
        if gold:
            self.golds[gold] += 1

    def summary(self, parts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """n (of questions with right answers, or of all where no question has one), metrics with standard errors, chance and majority, and averages by subject and part.

        The metrics are micro averages (every question counts the same); ``macro_M`` is the mean of the
        subjects' means, whose standard error follows from theirs.
        """
        names = list(dict.fromkeys(name for mine in self.metrics.values() for name in mine))
        summary: dict[str, Any] = {"n": self.n or self.unjudged, "metrics": {}}
        if self.n and self.unjudged:
            summary["without_answer"] = self.unjudged
        for name in names:
            pooled = _pooled([mine[name] for mine in self.metrics.values() if name in mine])
            summary["metrics"] |= _named(name, pooled)
        if names and len(self.metrics) > 1:
            for name in names:
                each = [mine[name] for mine in self.metrics.values() if name in mine]
                summary["metrics"] |= _named(f"macro_{name}", _averaged(each))
            summary["subjects"] = {
                group: {"n": next(iter(mine.values())).n}
                | {k: v for name, m in mine.items() for k, v in _named(name, (m.mean, m.stderr)).items()}
                for group, mine in self.metrics.items()
                if mine
            }
            members = {
                part: [self.metrics[g] for g in groups if g in self.metrics] for part, groups in parts.items()
            }
            summary["parts"] = {part: _part(names, mine) for part, mine in members.items() if mine}
        if self.blind.n:
            summary["chance"] = self.blind.mean
        if self.golds:
            summary["majority"] = max(self.golds.values()) / self.n
        return summary


def _part(names: Sequence[str], members: Sequence[dict[str, Moments]]) -> Numbers:
    part: Numbers = {"n": sum(next(iter(m.values())).n for m in members)}
    for name in names:
        part |= _named(name, _pooled([m[name] for m in members]))
        part |= _named(f"macro_{name}", _averaged([m[name] for m in members]))
    return part


def _named(name: str, pair: tuple[float, float | None]) -> Numbers:
    numbers: Numbers = {name: pair[0], f"{name}_stderr": pair[1]}
    if name.endswith("nats_per_token"):  # the same number as people know it; its error by the delta method
        known = name.replace("nats_per_token", "perplexity")
        value = math.exp(min(pair[0], 700.0))
        numbers |= {known: value, f"{known}_stderr": None if pair[1] is None else value * pair[1]}
    return numbers


def _pooled(each: Sequence[Moments]) -> tuple[float, float | None]:
    whole = Moments(*(sum(values) for values in zip(*(astuple(m) for m in each), strict=True)))
    return whole.mean, whole.stderr


def _averaged(each: Sequence[Moments]) -> tuple[float, float | None]:
    """The mean of the groups' means; without an error where a group has a single question, and so none itself."""
    errors = [m.stderr for m in each if m.stderr is not None]
    whole = math.sqrt(sum(error**2 for error in errors)) / len(each) if len(errors) == len(each) else None
    return sum(m.mean for m in each) / len(each), whole
