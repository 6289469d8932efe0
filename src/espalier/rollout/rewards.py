"""Rewards: a number for an answer, from a rule, from the user's own function, or from a trained model.

A rule sees text: the prompt's last turn, the answer without its end token, and the record's reference.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path

from espalier.errors import UserError
from espalier.maths.metrics import exact_match, normalise_answer

Rule = Callable[[str, str, str | None], float]
"""(prompt, answer, reference) to a finite number."""


def equals_reference(prompt: str, answer: str, reference: str | None) -> float:
    """1 when the answer is the reference, up to case, punctuation and spaces; else 0."""
    return float(exact_match(answer, [_needed(reference)]))


def contains_reference(prompt: str, answer: str, reference: str | None) -> float:
    """1 when the reference stands somewhere in the answer; else 0."""
    return float(normalise_answer(_needed(reference)) in normalise_answer(answer))


def boxed_number(prompt: str, answer: str, reference: str | None) -> float:
    """1 when the last number of the answer is the last number of the reference (GSM8K and the like); else 0."""
    found, wanted = _last_number(answer), _last_number(_needed(reference))
    return float(found is not None and wanted is not None and math.isclose(found, wanted))


def brevity(prompt: str, answer: str, reference: str | None) -> float:
    """Minus a hundredth of the answer's length in characters."""
    return -len(answer) / 100


RULES: dict[str, Rule] = {
    "equals": equals_reference,
    "contains": contains_reference,
    "number": boxed_number,
    "brevity": brevity,
}


def find_rule(name: str) -> Rule:
    """A rule by its name, or ``FILE.py:FUNCTION`` of the user's own.

    Raises:
        UserError: no such rule, file or function.
    """
    if name in RULES:
        return RULES[name]
    path, _, function = name.rpartition(":")
    if not path.endswith(".py"):
        raise UserError(
            f"reward_function: unknown rule {name!r}. Known: {', '.join(RULES)}, or your own as FILE.py:FUNCTION, "
            "a function of (prompt, answer, reference) that returns a number."
        )
    if not Path(path).is_file():
        raise UserError(f"reward_function: there is no file {path}.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = vars(module).get(function)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(
            f"reward_function: {path} has no function {function!r}; it has {', '.join(known) or 'none'}."
        )
    return checked(found, name)


def checked(rule: Rule, name: str) -> Rule:
    """The rule with its result checked: a reward that is no finite number would spoil the run silently."""

    def run(prompt: str, answer: str, reference: str | None) -> float:
        value = float(rule(prompt, answer, reference))
        if not math.isfinite(value):
            raise UserError(f"reward_function {name} returned {value} for the answer {answer[:80]!r}.")
        return value

    return run


def _needed(reference: str | None) -> str:
    if reference is None:
        raise UserError(
            "this reward compares with a reference, and the prompt has none: add a `reference` column."
        )
    return reference


def _last_number(text: str) -> float | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None
