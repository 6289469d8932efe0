"""Rewards: a number for an answer, from a rule, from the user's own function, or from a trained model.

A rule sees text: the prompt's last turn, the answer without its end token, and the record's reference.
A function of the user's own runs in a process of its own, for nobody knows what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from espalier.engine.limited import Died, Limited, TimedOut
from espalier.errors import UserError
from espalier.maths.metrics import exact_match, normalise_answer
from espalier.maths.numerals import same_number
from espalier.own_code import unfit

Rule = Callable[[str, str, str | None], float]
"""(prompt, answer, reference) to a finite number."""

RuleCall = tuple[str, str, str | None]

TIMEOUT = 60.0
"""Seconds for an answer: more than a large model that judges over a network takes, and not yet an evening lost."""

PATIENCE = 10.0
"""Seconds after which one that waits is told for what, and again after as many."""


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


def find_rule(name: str, seconds: float = TIMEOUT) -> Rule:
    """A rule by its name, or ``FILE.py:FUNCTION`` of the user's own, which is looked at and not called yet.

    Args:
        seconds: how long a function of the user's own may take for an answer.

    Raises:
        UserError: no such rule, file or function, or one that cannot be called.
    """
    said = problem(name)
    if said is not None:
        raise UserError(said)
    return RULES[name] if name in RULES else OwnFunction(name, seconds)


def problem(name: str) -> str | None:
    """What is wrong with a rule's name, as far as can be seen without running the file."""
    if name in RULES:
        return None
    path, _, _ = name.rpartition(":")
    if not path.endswith(".py"):
        return (
            f"reward_function: unknown rule {name!r}. Known: {', '.join(RULES)}, or your own as FILE.py:FUNCTION, "
            "a function of (prompt, answer, reference) that returns a number."
        )
    said = unfit(path)
    return None if said is None else f"reward_function: {said}"


class OwnFunction:
    """A function of the user's own, in a process of its own with a time limit, so that one that hangs, crashes or
    returns no number is one message with the answer that it failed on.

    Args:
        name: ``FILE.py:FUNCTION``; it takes (prompt, answer, reference), or is TRL's (prompts, completions, **columns).
        seconds: how long it may take for an answer; for a batch so long for each answer in it.
    """

    def __init__(self, name: str, seconds: float = TIMEOUT) -> None:
        self._path, _, self._function = name.rpartition(":")
        self._name, self._seconds = name, seconds
        self._process = Limited("espalier.rollout.own_function:serve")
        reply = self._asked("look", [], lambda passed: None)
        if "problem" in reply:
            raise UserError(f"reward_function: {reply['problem']}")
        self._batch, self._line = reply["style"] == "batch", reply["line"]

    def __call__(self, prompt: str, answer: str, reference: str | None) -> float:
        return self.many([(prompt, answer, reference)])[0]

    def many(
        self, asked: Sequence[RuleCall], *, source: str = "", show: Callable[[str], None] = lambda text: None
    ) -> list[float]:
        """A finite number for each answer.

        Args:
            asked: (prompt, answer, reference) of each.
            source: "FILE:LINE" of the prompt, for errors.
            show: told where it is while it takes long.

        Raises:
            UserError: it raised, took too long, or returned no number; names the answer.
            Stopped: a signal came while it was waited for.
        """
        found: list[float] = []
        size = len(asked) if self._batch else 1
        for start in range(0, len(asked), size):
            part = list(asked[start : start + size])
            count = f"answers {start + 1} to {start + size}" if self._batch else f"answer {start + 1}"
            told = _Patience(f"{self._name}: {count} of {len(asked)} to {source or 'a prompt'}", show)
            said = self._asked("score", part, told)
            if "problem" in said:
                prompt, answer, _ = part[said["at"]]
                where = f" ({source})" if source else ""
                more = " (the first of a batch)" if self._batch and "raised" in said["problem"] else ""
                raise UserError(
                    f"reward_function {self._name} {said['problem']} for the answer {_short(answer)}{more} to the "
                    f"prompt {_short(prompt)}{where}. A finite number for every answer was wanted: mend the function "
                    f"(it begins at line {self._line} of {self._path}); the last checkpoint is kept."
                )
            found += said["scores"]
        return found

    def _asked(self, what: str, part: list[RuleCall], told: Callable[[float], None]) -> dict[str, Any]:
        columns = [list(column) for column in zip(*part, strict=True)]
        seconds = self._seconds * max(1, len(part))
        try:
            found: dict[str, Any] = self._process.call(
                what, self._path, self._function, *columns, seconds=seconds, waiting=told
            )
            return found
        except TimedOut:
            limit = f"reward_timeout: {self._seconds:g} for an answer"
            return {"problem": f"has not come back after {seconds:g} s ({limit})", "at": 0}
        except Died as died:
            return {"problem": f"took its process with it ({died})", "at": 0}


class _Patience:
    """Shows a line each `PATIENCE` seconds of one call."""

    def __init__(self, text: str, show: Callable[[str], None]) -> None:
        self._text, self._show, self._next = text, show, PATIENCE

    def __call__(self, passed: float) -> None:
        if passed >= self._next:
            self._next += PATIENCE
            self._show(f"{self._text}, {passed:.0f} s so far")


def _short(text: str) -> str:
    return repr(text[:80])


def _needed(reference: str | None) -> str:
    if reference is None:
        raise UserError(
            "this reward compares with a reference, and the prompt has none: add a `reference` column."
        )
    return reference
