"""A reward function of the user's own, as the process that calls it sees it (see `espalier.engine.limited`).

Only the standard library (and `own_code`, which is of it), so that this process starts in a tenth of a second.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from espalier.own_code import function_of, load, said

GIVEN = ("prompts", "completions", "reference")
"""What a function in TRL's style can get: lists, one entry an answer."""


def serve(what: str, *arguments: Any) -> dict[str, Any]:
    """`look` or `score`, by name."""
    functions: dict[str, Callable[..., dict[str, Any]]] = {"look": look, "score": score}
    return functions[what](*arguments)


def look(path: str, name: str) -> dict[str, Any]:
    """Execute a file and look at its function: ``{"style": "answer" or "batch"}``, or ``{"problem": …}``."""
    try:
        function, style = _found(path, name)
    except _Unfit as unfit:
        return {"problem": str(unfit)}
    except BaseException as error:
        return {"problem": said(error, path)}
    return {"style": style, "line": _line(function)}


def score(
    path: str, name: str, prompts: list[str], answers: list[str], references: list[str | None]
) -> dict[str, Any]:
    """``{"scores": …}``, a number for each answer; or ``{"problem": …, "at": …}``, the answer that it failed on.

    A problem is what the function did, such as "returned None".
    """
    at = 0
    try:
        function, style = _found(path, name)
        if style == "batch":
            given = {"prompts": prompts, "completions": answers, "reference": references}
            return {"scores": _numbers(_chosen(function, given), len(answers))}
        scores: list[float] = []
        for prompt, answer, reference in zip(prompts, answers, references, strict=True):
            at = len(scores)
            scores.append(_number(function(prompt, answer, reference)))
        return {"scores": scores}
    except _Unfit as unfit:
        return {"problem": str(unfit), "at": at if unfit.at is None else unfit.at}
    except BaseException as error:
        return {"problem": f"raised {said(error, path)}", "at": at}


class _Unfit(Exception):
    """The function, or what it returned, is not what is wanted; `at`: for which answer."""

    def __init__(self, text: str, at: int | None = None) -> None:
        super().__init__(text)
        self.at = at


@cache
def _found(path: str, name: str) -> tuple[Callable[..., Any], str]:
    """The function, and whether it takes one answer or a batch of them.

    What lies beside its file can be imported.
    """
    sys.path.insert(0, str(Path(path).resolve().parent))
    module = load(path, "reward_function")
    try:
        function = function_of(module, path, name)
    except LookupError as error:
        raise _Unfit(str(error)) from None
    return function, _style(function, path, name)


def _style(function: Callable[..., Any], path: str, name: str) -> str:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # made in C: nobody knows before it is called
        return "answer"
    parameters = signature.parameters.values()
    if "completions" in signature.parameters:
        unknown = [
            p.name
            for p in parameters
            if p.name not in GIVEN
            and p.default is p.empty
            and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        if unknown:
            raise _Unfit(
                f"{path}: {name}{signature} wants {', '.join(unknown)}; there are {', '.join(GIVEN)}."
            )
        return "batch"
    try:
        signature.bind("prompt", "answer", "reference")
    except TypeError as error:
        raise _Unfit(
            f"{path}: {name}{signature} cannot be called as {name}(prompt, answer, reference) ({error}), nor is it "
            "TRL's function(prompts, completions, **columns)."
        ) from None
    return "answer"


def _chosen(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return function(**given)
    return function(**{key: value for key, value in given.items() if key in parameters})


def _numbers(found: Any, count: int) -> list[float]:
    try:
        found = list(found)
    except TypeError:
        raise _Unfit(f"returned {_short(found)} and not a list of {count} numbers") from None
    if len(found) != count:
        raise _Unfit(f"returned {len(found)} numbers for {count} answers")
    return [_number(value, at) for at, value in enumerate(found)]


def _number(value: Any, at: int | None = None) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _Unfit(f"returned {_short(value)}", at) from None
    if number - number != 0:
        raise _Unfit(f"returned {number}", at)
    return number


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _line(function: Callable[..., Any]) -> int:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_firstlineno if code is not None else 0
