"""What every reward that needs no model of ours is to the rest: a scorer, which gives a number or a failure an answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from espalier.rollout.asked import Ask

TIMEOUT = 60.0
"""Seconds for an answer: more than a large model that judges over a network takes, and not yet an evening lost."""

Show = Callable[[str], None]


def silent(text: str) -> None:
    """A `Show` that shows nothing."""


@dataclass(frozen=True)
class Failure:
    """An answer that got no number.

    >>> Failure("returned None", "Mend the function.").what
    'returned None'

    Attributes:
        what: what the reward did, as the rest of a sentence that begins with its name.
        cure: what was wanted and what to do.
        more: said behind the answer, such as "(the first of a batch)".
    """

    what: str
    cure: str = ""
    more: str = ""


class AnswerScorer(Protocol):
    """Gives a finite number, or a `Failure`, for each answer to a prompt, in their order.

    Whoever asks may stop after a failure, so the work for an answer is done when it is asked for.
    `show` is told what is waited for, where that takes long.
    """

    def __call__(self, ask: Ask, answers: Sequence[str], show: Show) -> Iterator[float | Failure]: ...


@dataclass(frozen=True)
class Means:
    """What a run gives to its rewards.

    Attributes:
        seconds: for one answer, where a reward says nothing else.
        folder: where what must outlive the process is kept; None: nowhere.
        world: how many processes share the answers of a rollout.
        say: shows one line and keeps it for the summary.
    """

    seconds: float = TIMEOUT
    folder: Path | None = None
    world: int = 1
    say: Show = silent


def each(score: Callable[[Ask, str], float | Failure]) -> AnswerScorer:
    """A scorer that looks at one answer at a time."""

    def scorer(ask: Ask, answers: Sequence[str], show: Show) -> Iterator[float | Failure]:
        for answer in answers:
            found = score(ask, answer)
            if not isinstance(found, Failure) and not math.isfinite(found):
                found = Failure(f"gave {found}", "A finite number was wanted: mend the rule.")
            yield found

    return scorer
