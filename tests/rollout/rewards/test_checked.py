"""Rewards that run what they check in processes of their own: programs against tests, JSON schemas."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import UserError
from espalier.rollout.rewards.scorer import Failure
from tests.rollout.rewards.conftest import ASK, scorer_of, scores

TESTS = ["assert add(2, 3) == 5", "assert add('a', 'b') == 'ab'", "assert add(1, 1) == 3"]


def share_passed(answer: str, tests: Any, **settings: Any) -> float | Failure:
    ask = replace(ASK, columns={"tests": tests, "other": "assert False"})
    (found,) = scores({"type": "unit_tests", **settings}, [answer], ask)
    return found


def test_the_share_of_tests_that_a_program_passes() -> None:
    program = "def add(a, b):\n    return a + b\n"
    answer = f"First:\n```python\nx = 1\n```\nThen\n```python\n{program}```\nThat is all."
    assert share_passed(answer, TESTS) == pytest.approx(2 / 3)
    assert share_passed(program, TESTS[0]) == 1.0, "all of an answer without a code block"
    assert share_passed(answer, "assert x == 1") == 0.0, "the last block alone"
    assert share_passed(answer, TESTS[0], column="other") == 0.0
    assert share_passed("while True: pass", ["", ""], seconds=0.2) == 0.0


@pytest.mark.parametrize("tests", [[], 5, ["assert True", 3], None])
def test_a_column_that_holds_no_tests_is_a_failure(tests: Any) -> None:
    found = share_passed("x = 1", tests)
    assert (
        isinstance(found, Failure)
        and "in the column 'tests'" in found.what
        and "mend the record" in found.cure
    )


SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}


@pytest.mark.skipif(find_spec("jsonschema") is None, reason="needs jsonschema (the extra rewards)")
def test_a_schema_by_hand(tmp_path: Path) -> None:
    answers = {'{"n": 1}': 1, 'So: ```json\n{"n": 2}\n```': 1, '{"n": "1"}': 0, "{}": 0, "n = 1": 0, "": 0}
    assert scores({"type": "json_schema", "schema": SCHEMA}, list(answers)) == list(answers.values())
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA), "utf-8")
    assert scores({"type": "schema", "schema": str(file)}, list(answers)) == list(answers.values())
    with pytest.raises(UserError, match="`schema` is no JSON schema: 'odd' is not valid"):
        scorer_of({"type": "json_schema", "schema": {"type": "odd"}})


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, *more: Any) -> Any:
        if name == "jsonschema":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(UserError, match=r"jsonschema is needed here .*pip install 'espalier-llm\[rewards\]'"):
        scorer_of({"type": "json_schema", "schema": SCHEMA})
