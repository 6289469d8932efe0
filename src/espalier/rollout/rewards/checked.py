"""Rewards that may not come back: patterns, JSON schemas, mathematics and programs run in processes of their own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from espalier.checking.library import library
from espalier.checking.mathematics import NOT_COMPARABLE, SECONDS, judge_expression
from espalier.checking.sandbox import Limits, failure_of
from espalier.config.option import Options, option
from espalier.disk.reading import read_json
from espalier.engine.limited import Died, Limited, TimedOut
from espalier.errors import UserError
from espalier.rollout.asked import Ask
from espalier.rollout.rewards.scorer import AnswerScorer, Failure, Means, Show, each

_BLOCK = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class PatternSettings(Options):
    """1 where a regular expression of Python's is found in an answer, else 0."""

    pattern: str = option("", "The expression; `.` does not match a new line unless it begins with (?s).")
    whole: bool = option(False, "Whether the whole answer must match.")
    seconds: float = option(1.0, "For an answer; some expressions never end.", above=0, same_result=True)

    def problems(self) -> list[str]:
        try:
            re.compile(self.pattern)
        except re.error as error:
            return [f"`pattern` {self.pattern!r} is no regular expression: {error}."]
        return [] if self.pattern else ["`pattern` is missing; give a regular expression."]


def build_pattern(settings: PatternSettings, means: Means) -> AnswerScorer:
    process = Limited("espalier.checking.patterns:found")
    cure = "Such a pattern tries too many ways, as (a+)+ does: write it with fewer repetitions inside of repetitions"
    return each(
        lambda ask, answer: _limited(
            process, [settings.pattern, settings.whole, answer], settings.seconds, cure
        )
    )


@dataclass(frozen=True, kw_only=True)
class SchemaSettings(Options):
    """1 where an answer is JSON that a schema allows, else 0; of an answer with code blocks the last one is read."""

    schema: dict[str, Any] | str = option({}, "The JSON schema, or a file with it.", names="file")
    seconds: float = option(5.0, "For an answer.", above=0, same_result=True)

    def problems(self) -> list[str]:
        return [] if self.schema else ["`schema` is missing; give a JSON schema, or a file with one."]


def build_schema(settings: SchemaSettings, means: Means) -> AnswerScorer:
    jsonschema = library("jsonschema", "jsonschema", extra="rewards")
    schema = settings.schema
    if isinstance(schema, str):
        schema = read_json(Path(schema), "schema")
    kind = jsonschema.validators.validator_for(schema)
    try:
        kind.check_schema(schema)
    except jsonschema.exceptions.SchemaError as error:
        raise UserError(f"rewards: `schema` is no JSON schema: {error.message}. Mend it.") from None
    process = Limited("espalier.checking.patterns:fits")

    def score(ask: Ask, answer: str) -> float | Failure:
        text = last_block(answer)
        try:
            json.loads(text)
        except ValueError:
            return 0.0
        return _limited(process, [schema, text], settings.seconds, "Look at the schema's patterns")

    return each(score)


def _limited(process: Limited, arguments: list[Any], seconds: float, cure: str) -> float | Failure:
    try:
        return float(process.call(*arguments, seconds=seconds))
    except TimedOut:
        return Failure(f"has not come back after {seconds:g} s (seconds: {seconds:g})", cure)
    except Died as died:
        return Failure(f"took its process with it ({died})", cure)
    except RuntimeError as error:
        return Failure(f"raised {str(error).strip().splitlines()[-1]}", cure)


@dataclass(frozen=True, kw_only=True)
class MathematicsSettings(Options):
    """1 where an answer's last boxed text, or all of it, equals the reference as mathematics (math-verify), else 0."""


def build_mathematics(settings: MathematicsSettings, means: Means) -> AnswerScorer:
    if find_spec("math_verify") is None:
        library("math_verify", "math-verify")
    lost = [0]

    def score(ask: Ask, answer: str) -> float | Failure:
        assert ask.reference is not None
        judged = judge_expression(answer, (ask.reference,))
        if NOT_COMPARABLE in judged:
            lost[0] += 1
            if lost[0] == 1:
                means.say(
                    f"mathematics: {answer[-80:]!r} could not be compared with the reference within {SECONDS:g} s and "
                    "counts as wrong, as all such answers do"
                )
        return judged["accuracy"]

    return each(score)


@dataclass(frozen=True, kw_only=True)
class UnitTestsSettings(Options):
    """The share of a record's tests that the program in an answer (its last code block, or all of it) passes."""

    column: str = option(
        "tests", "The record's column with Python code that raises nothing: a text or a list."
    )
    seconds: float = option(10.0, "For one test.", above=0)
    memory: float = option(1.0, "GiB of address space for one test.", above=0)

    def problems(self) -> list[str]:
        return [] if self.column else ["`column` is empty; name the column with the tests."]


def build_unit_tests(settings: UnitTestsSettings, means: Means) -> AnswerScorer:
    limits = Limits(settings.seconds, int(settings.memory * (1 << 30)))

    def score(ask: Ask, answer: str) -> float | Failure:
        tests = ask.columns.get(settings.column)
        tests = [tests] if isinstance(tests, str) else tests
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            return Failure(
                f"found {str(tests)[:60]!r} in the column {settings.column!r}",
                "Python code was wanted there, as a text or a list of texts: mend the record",
            )
        program = last_block(answer)
        return sum(failure_of(program, test, limits) is None for test in tests) / len(tests)

    def scorer(ask: Ask, answers: Sequence[str], show: Show) -> Iterator[float | Failure]:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # each waits for a process
            yield from list(pool.map(lambda answer: score(ask, answer), answers))

    return scorer


def last_block(answer: str) -> str:
    """What stands in the last code block of an answer; all of it where there is none.

    >>> last_block("Here:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    blocks = _BLOCK.findall(answer)
    return str(blocks[-1][1]) if blocks else answer
