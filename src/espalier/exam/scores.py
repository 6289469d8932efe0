"""From predictions to numbers: accuracy with its standard error, chance and majority beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from espalier.errors import UserError
from espalier.exam.answer import Scored
from espalier.exam.task import Question
from espalier.maths.metrics import accuracy, exact_match, normalise_answer


def predicted(scored: Scored, normalise: str) -> int:
    """The candidate with the highest sum (or mean) of logprobs; the first of equals.

    Raises:
        UserError: a score that is no number, of which no order follows.
    """
    if not all(math.isfinite(s) for s in scored.scores):
        raise UserError(f"the model gives {scored.scores} as logprobs: its weights are broken.")
    values = [s / n if normalise == "mean" else s for s, n in zip(scored.scores, scored.tokens, strict=True)]
    return max(range(len(values)), key=values.__getitem__)


def is_right(text: str, references: Sequence[str], metric: str) -> bool:
    """Whether a generated answer is a reference, or contains one."""
    if metric == "contains":
        return any(normalise_answer(r) in normalise_answer(text) for r in references)
    return exact_match(text, references)


def judged(right: Sequence[bool], metric: str) -> dict[str, float]:
    """The share of right answers with its standard error."""
    found = accuracy(right)
    return {metric: found.value, f"{metric}_stderr": found.stderr or 0.0}


def chance(questions: Sequence[Question]) -> float:
    """Expected accuracy of guessing blindly."""
    counted = [1 / len(q.candidates) for q in questions if q.candidates]
    return sum(counted) / len(counted) if counted else 0.0


def majority(questions: Sequence[Question]) -> float:
    """Accuracy of always saying what is right most often: a text where candidates are the same, else a place."""
    golds = [q for q in questions if q.gold is not None]
    if not golds:
        return 0.0
    same = len({q.candidates for q in golds}) == 1
    said = Counter(q.candidates[q.gold or 0] if same else str(q.gold) for q in golds)
    return said.most_common(1)[0][1] / len(golds)
