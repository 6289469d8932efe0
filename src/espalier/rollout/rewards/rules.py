"""Rules: a number for an answer from the text alone.

A rule sees the prompt's last turn, the answer without its end token, and the record's reference. What needs settings of
its own, a process or a library is a kind of its own (`table`).
"""

from __future__ import annotations

from collections.abc import Callable

from espalier.errors import UserError
from espalier.maths.metrics import exact_match, normalise_answer
from espalier.maths.numerals import same_number
from espalier.rollout.asked import Ask
from espalier.rollout.rewards.scorer import AnswerScorer, Failure, each

Rule = Callable[[str, str, str | None], float]
"""(prompt, answer, reference) to a finite number."""


def equals_reference(prompt: str, answer: str, reference: str | None) -> float:
    """1 when the answer is the reference, up to case, punctuation and spaces; else 0."""
    return float(exact_match(answer, [_needed(reference)]))


def contains_reference(prompt: str, answer: str, reference: str | None) -> float:
    """1 when the reference stands somewhere in the answer; else 0."""
    return float(normalise_answer(_needed(reference)) in normalise_answer(answer))


def boxed_number(prompt: str, answer: str, reference: str | None) -> float:
    """1 when answer and reference end in the same number, read as the exams read it (GSM8K and the like); else 0."""
    return float(same_number(answer, _needed(reference)))


def brevity(prompt: str, answer: str, reference: str | None) -> float:
    """Minus a hundredth of the answer's length in characters."""
    return -len(answer) / 100


RULES: dict[str, Rule] = {
    "equals": equals_reference,
    "contains": contains_reference,
    "number": boxed_number,
    "brevity": brevity,
}

COMPARING = ("equals", "contains", "number")
"""Those that look at the reference, so that a prompt without one is found before a model is loaded."""


def by_rule(rule: Rule) -> AnswerScorer:
    """A rule as a scorer."""

    def score(ask: Ask, answer: str) -> float | Failure:
        return float(rule(ask.text, answer, ask.reference))

    return each(score)


def _needed(reference: str | None) -> str:
    if reference is None:
        raise UserError(
            "this reward compares with a reference, and the prompt has none: add a `reference` column."
        )
    return reference
