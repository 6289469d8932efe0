"""Which of two answers is better, by a language model behind an OpenAI-compatible endpoint.

A judge likes what it reads first, so it is asked twice, the second time with the answers exchanged (Zheng et al. 2023,
"Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", section 3.4).
"""

from __future__ import annotations

import re

from espalier.checking.endpoint import Endpoint

ASKED = """\
Two assistants have answered the same question. Say which answer serves the person who asked better: right, helpful, \
complete and clear. Neither the order of the answers nor their length counts in itself.

[Question]
{question}

[Answer A]
{first}

[Answer B]
{second}

Give your reasons in a few sentences. Then end with a line of its own: [[A]] if answer A is better, [[B]] if answer B \
is better, [[C]] if neither is."""

_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_WORTH = {"A": 0.0, "B": 1.0, "C": 0.5}


def verdict(text: str) -> float | None:
    """What a judge's last verdict is worth for answer B: 1 better, 0.5 neither, 0 worse; None without a verdict.

    >>> verdict("A is [[A]]? No. [[B]]"), verdict("[[C]]"), verdict("B")
    (1.0, 0.5, None)
    """
    found = _VERDICT.findall(text)
    return _WORTH[found[-1]] if found else None


def preference(judge: Endpoint, question: str, a: str, b: str) -> tuple[float | None, float | None]:
    """What b is worth against a: as answer B, and as answer A; None where the judge gave no verdict."""
    last = verdict(judge.answer(ASKED.format(question=question, first=a, second=b)))
    first = verdict(judge.answer(ASKED.format(question=question, first=b, second=a)))
    return last, None if first is None else 1 - first
