"""Plain filters: how long a text is, in which script it is written, how much of it repeats itself.

No model judges; each filter is one number with a bound, and the account names the worst examples of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from espalier.corpora.clean.shingles import folded
from espalier.corpora.clean.view import viewed
from espalier.corpora.made import CorpusRecord, Omission, Outcomes
from espalier.data.store.table import language

SHOWN = 20
REPEATED = 8
"""How many characters in a row count as repeated when they stand twice."""


def repetition(text: str) -> float:
    """The share (0 to 1) of the runs of 8 characters that stood in the text before; short texts have none.

    >>> repetition("我不知道。" * 10) > 0.8, repetition("春眠不觉晓处处闻啼鸟夜来风雨声花落知多少")
    (True, 0.0)
    """
    close = "".join(folded(text).split())
    number = len(close) - REPEATED + 1
    if number < 2:
        return 0.0
    return 1 - len({close[at : at + REPEATED] for at in range(number)}) / number


def filtered(
    outcomes: Outcomes,
    account: dict[str, Any],
    *,
    min_chars: int = 0,
    max_chars: int | None = None,
    languages: tuple[str, ...] = (),
    max_repetition: float | None = None,
) -> Outcomes:
    """Takes out records outside the bounds; lengths are of all that is said, in characters."""
    checks: list[tuple[str, Callable[[str], str]]] = []
    if min_chars:
        checks.append(("too short", lambda text: f"{len(text)} characters" if len(text) < min_chars else ""))
    if max_chars is not None:
        checks.append(("too long", lambda text: f"{len(text)} characters" if len(text) > max_chars else ""))
    if languages:
        checks.append(("another language", lambda text: _foreign(text, languages)))
    if max_repetition is not None:
        checks.append(("repeats itself", lambda text: _repeats(text, max_repetition)))
    account.update({name: {"removed": 0, "examples": []} for name, _ in checks})
    for thing in outcomes:
        view = viewed(thing.row, thing.source) if isinstance(thing, CorpusRecord) else None
        if not isinstance(thing, CorpusRecord) or view is None or isinstance(view, Omission):
            yield thing
            continue
        for name, check in checks:
            why = check(view.text)
            if why:
                account[name]["removed"] += 1
                if len(account[name]["examples"]) < SHOWN:
                    account[name]["examples"].append(
                        {"source": thing.source, "why": why, "text": view.text[:200]}
                    )
                yield Omission(thing.source, name, f"{why}: {view.text}")
                break
        else:
            yield thing


def _foreign(text: str, wanted: tuple[str, ...]) -> str:
    spoken = language(text)
    return f"reads as {spoken}" if spoken and spoken not in wanted else ""


def _repeats(text: str, most: float) -> str:
    share = repetition(text)
    return f"{share:.0%} of it stood before" if share > most else ""
