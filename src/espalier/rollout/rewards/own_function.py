"""A reward function of the user's own, as the process that calls it sees it (see `espalier.engine.limited`).

Only the standard library (and `own_code`, which is of it), so that this process starts in a tenth of a second.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from espalier.own_code import function_of, load, said

OWN = ("prompt", "answer", "reference", "messages", "columns")
"""What a function of one answer can ask for by name, beside the columns of the prompt's record."""

LISTS = ("prompts", "completions", "reference", "messages")
"""What a function in TRL's style can ask for, beside those columns: lists, one entry an answer."""

Result = list[Any]
"""[number, None], or [None, what the function did in place of returning one]."""


def serve(what: str, *arguments: Any) -> dict[str, Any]:
    """`look` or `score`, by name."""
    functions: dict[str, Callable[..., dict[str, Any]]] = {"look": look, "score": score}
    return functions[what](*arguments)


def look(path: str, name: str) -> dict[str, Any]:
    """Execute a file and look at its function, without calling it.

    Returns:
        ``{"style": "answer" or "batch", "line": …, "wants": […]}``, where `wants` are the columns of a record that it
        cannot do without; or ``{"problem": …}``.
    """
    try:
        function, style, wants = _found(path, name)
    except _Unfit as unfit:
        return {"problem": str(unfit)}
    except BaseException as error:
        return {"problem": said(error, path)}
    return {"style": style, "line": _line(function), "wants": list(wants)}


def score(path: str, name: str, ask: Mapping[str, Any], answers: Sequence[str]) -> dict[str, Any]:
    """``{"results": …}``, a `Result` for each answer to one prompt.

    Args:
        ask: ``text``, ``reference``, ``messages`` and ``columns`` of the prompt.
    """
    try:
        function, style, _ = _found(path, name)
        if style == "batch":
            return {"results": _of_batch(_call(function, _lists(ask, answers), ()), len(answers))}
        return {"results": [_of_one(function, ask, answer, path) for answer in answers]}
    except _Unfit as unfit:
        return {"results": [[None, str(unfit)]] * len(answers)}
    except BaseException as error:
        return {"results": [[None, f"raised {said(error, path)}"]] * len(answers)}


class _Unfit(Exception):
    """The function, or what it returned, is not what is wanted."""


def _of_one(function: Callable[..., Any], ask: Mapping[str, Any], answer: str, path: str) -> Result:
    given = {**ask["columns"], "prompt": ask["text"], "answer": answer, "messages": ask["messages"]}
    given |= {"reference": ask["reference"], "columns": ask["columns"]}
    try:
        return _number(_call(function, given, (ask["text"], answer, ask["reference"])))
    except BaseException as error:
        return [None, f"raised {said(error, path)}"]


def _lists(ask: Mapping[str, Any], answers: Sequence[str]) -> dict[str, Any]:
    """The arguments of TRL's style: each column of the record once an answer."""
    one = {
        **ask["columns"],
        "prompts": ask["text"],
        "reference": ask["reference"],
        "messages": ask["messages"],
    }
    return {**{name: [value] * len(answers) for name, value in one.items()}, "completions": list(answers)}


def _of_batch(returned: Any, count: int) -> list[Result]:
    try:
        returned = list(returned)
    except TypeError:
        raise _Unfit(f"returned {_short(returned)} and not a list of {count} numbers") from None
    if len(returned) != count:
        raise _Unfit(f"returned {len(returned)} numbers for {count} answers")
    return [_number(value) for value in returned]


@cache
def _found(path: str, name: str) -> tuple[Callable[..., Any], str, tuple[str, ...]]:
    """The function, whether it takes one answer or a batch of them, and which columns it cannot do without.

    What lies beside its file can be imported.
    """
    sys.path.insert(0, str(Path(path).resolve().parent))
    module = load(path, "reward_function")
    try:
        function = function_of(module, path, name)
    except LookupError as error:
        raise _Unfit(str(error)) from None
    return function, *_style(function, path, name)


def _style(function: Callable[..., Any], path: str, name: str) -> tuple[str, tuple[str, ...]]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # made in C: nobody knows before it is called
        return "answer", ()
    needed = _needed(signature)
    if "completions" in signature.parameters:
        return "batch", tuple(key for key in needed if key not in LISTS and key != "completions")
    if _takes_three(signature):
        return "answer", ()
    if "answer" in signature.parameters and not _only_by_place(signature):
        return "answer", tuple(key for key in needed if key not in OWN)
    raise _Unfit(
        f"{path}: {name}{signature} cannot be called as {name}(prompt, answer, reference), it has no parameter called "
        "`answer` to be called by name, nor is it TRL's function(prompts, completions, **columns)."
    )


def _needed(signature: inspect.Signature) -> list[str]:
    """Parameters without a default."""
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in signature.parameters.values() if p.default is p.empty and p.kind not in several]


def _takes_three(signature: inspect.Signature) -> bool:
    try:
        signature.bind("prompt", "answer", "reference")
    except TypeError:
        return False
    return True


def _only_by_place(signature: inspect.Signature) -> bool:
    return any(p.kind is p.POSITIONAL_ONLY for p in signature.parameters.values())


def _call(function: Callable[..., Any], given: Mapping[str, Any], places: tuple[Any, ...]) -> Any:
    """By name where the function names `answer` or `completions` and all that it needs is given; else by place."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return function(*places)
    names = signature.parameters
    named = ("answer" in names or "completions" in names) and not _only_by_place(signature)
    if not named or (places and not set(_needed(signature)) <= set(given)):
        return function(*places)
    if any(p.kind is p.VAR_KEYWORD for p in names.values()):
        return function(**given)
    return function(**{key: value for key, value in given.items() if key in names})


def _number(value: Any) -> Result:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return [None, f"returned {_short(value)}"]
    return [None, f"returned {number}"] if number - number != 0 else [number, None]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _line(function: Callable[..., Any]) -> int:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_firstlineno if code is not None else 0
