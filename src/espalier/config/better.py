"""Which way a number of an evaluation is better, by its name."""

from __future__ import annotations

import re
from typing import Literal

Better = Literal["higher", "lower"]

HIGHER = [
    "accuracy",
    "margin",
    "chosen_reward",
    "desirable_reward",
    "reward",
    "reward_greedy",
    "yardstick",
    "yardstick_greedy",
    "ended",
    "ended_greedy",
    "explained_variance",
]
LOWER = ["loss", "nll", "chosen_nll", "kl", "duplicates", "score_clipped"]
BEST_OF = re.compile(r"(yardstick_)?best_of_\d+")


def better(name: str) -> Better | None:
    """None where neither way is better, as with lengths, or where nobody knows the number.

    >>> better("yardstick"), better("kl"), better("best_of_4"), better("entropy")
    ('higher', 'lower', 'higher', None)
    """
    if name in HIGHER or BEST_OF.fullmatch(name):
        return "higher"
    return "lower" if name in LOWER else None


def plain_name(name: str) -> str:
    """Without the ``eval_`` under which evaluations are logged."""
    return name.removeprefix("eval_")
