"""A reward function of the user's own: looked at before a model is loaded, called in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.config.option import Options, option
from espalier.engine.limited import Died, Limited, TimedOut
from espalier.errors import UserError
from espalier.own_code import unfit
from espalier.rollout.asked import Ask
from espalier.rollout.rewards.scorer import TIMEOUT, Failure, Means, Show

PATIENCE = 10.0
"""Seconds after which one that waits is told for what, and again after as many."""


@dataclass(frozen=True, kw_only=True)
class FunctionSettings(Options):
    """A function of your own, in a process of its own with a time limit; `type: FILE.py:FUNCTION` says the same."""

    path: str = option("", "FILE.py:FUNCTION.", names="function")
    seconds: float | None = option(None, "For an answer; null: reward_timeout.", above=0, same_result=True)

    def problems(self) -> list[str]:
        file = self.path.rpartition(":")[0]
        if not file.endswith(".py"):
            return [f"`path` is {self.path!r}; wanted FILE.py:FUNCTION."]
        said = unfit(file)
        return [] if said is None else [said]


class OwnFunction:
    """The user's function as a scorer, so that one that hangs, crashes or returns no number is one message with the
    answer that it failed on.

    Args:
        name: ``FILE.py:FUNCTION``; it takes (prompt, answer, reference) by place or what it names of those, of
            ``messages`` and of the record's columns, or is TRL's (prompts, completions, **columns).
        seconds: how long it may take for an answer; for a batch so long for each answer in it.

    Attributes:
        wants: columns that every record must have.

    Raises:
        UserError: the file cannot be run, or the function cannot be called.
    """

    def __init__(self, name: str, seconds: float = TIMEOUT) -> None:
        self._path, _, self._function = name.rpartition(":")
        self._name, self._seconds = name, seconds
        self._process = Limited("espalier.rollout.rewards.own_function:serve")
        try:
            reply = self._process.call("look", self._path, self._function, seconds=max(seconds, TIMEOUT))
        except (TimedOut, Died) as error:
            reply = {"problem": f"{self._path} does not even load ({error}). Mend the file."}
        if "problem" in reply:
            raise UserError(f"reward_function: {reply['problem']}")
        self._batch, self._line = reply["style"] == "batch", reply["line"]
        self.wants: tuple[str, ...] = tuple(reply["wants"])

    def __call__(self, ask: Ask, answers: Sequence[str], show: Show) -> Iterator[float | Failure]:
        size = len(answers) if self._batch else 1
        for start in range(0, len(answers), size):
            part = list(answers[start : start + size])
            count = f"answers {start + 1} to {start + size}" if self._batch else f"answer {start + 1}"
            told = _Patience(f"{self._name}: {count} of {len(answers)} to {ask.source or 'a prompt'}", show)
            for number, problem in self._asked(ask, part, told):
                yield number if problem is None else self._failure(problem)

    def _failure(self, problem: str) -> Failure:
        more = (
            "(the first of a batch)" if self._batch and problem.startswith(("raised", "took", "has")) else ""
        )
        cure = (
            "A finite number for every answer was wanted: mend the function (it begins at line "
            f"{self._line} of {self._path})"
        )
        return Failure(problem, cure, more)

    def _asked(self, ask: Ask, part: list[str], told: Callable[[float], None]) -> list[Any]:
        seen = {"text": ask.text, "reference": ask.reference, "messages": list(ask.messages),
                "columns": dict(ask.columns)}  # fmt: skip
        seconds = self._seconds * len(part)
        try:
            reply = self._process.call(
                "score", self._path, self._function, seen, part, seconds=seconds, waiting=told
            )
            results: list[Any] = reply["results"]
            return results
        except TimedOut:
            limit = f"reward_timeout: {self._seconds:g} for an answer"
            return [[None, f"has not come back after {seconds:g} s ({limit})"]] * len(part)
        except Died as died:
            return [[None, f"took its process with it ({died})"]] * len(part)


def build_function(settings: FunctionSettings, means: Means) -> OwnFunction:
    return OwnFunction(settings.path, means.seconds if settings.seconds is None else settings.seconds)


class _Patience:
    """Shows a line each `PATIENCE` seconds of one call."""

    def __init__(self, text: str, show: Show) -> None:
        self._text, self._show, self._next = text, show, PATIENCE

    def __call__(self, passed: float) -> None:
        if passed >= self._next:
            self._next += PATIENCE
            self._show(f"{self._text}, {passed:.0f} s so far")
