"""Rules, and rewards that look at the text alone, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from espalier.errors import UserError
from espalier.rollout.rewards.scorer import Failure
from tests.rollout.rewards.conftest import ASK, scores, spec_of


@pytest.mark.parametrize(
    ("rule", "answer", "reference", "wanted"),
    [
        ("equals", " Paris. ", "paris", 1.0),
        ("exact", " Paris. ", "paris", 1.0),
        ("equals", "Paris, France", "Paris", 0.0),
        ("equals", "北京。", "北京", 1.0),
        ("contains", "I think it is Paris.", "paris", 1.0),
        ("contains", "I think it is Rome.", "paris", 0.0),
        ("number", "3 + 4 = 7", "The answer is 7.", 1.0),
        ("number", "7 is more than 6", "7", 0.0),
        ("number", "1,234.50", "1234.5", 1.0),
        ("number", "minus: -3", "#### -3", 1.0),
        ("number", "none", "7", 0.0),
        ("brevity", "12345", None, -0.05),
        ("mathematics", r"So it is \boxed{\frac{1}{2}}", "0.5", 1.0),
        ("mathematics", r"So it is \boxed{\frac{1}{3}}", "0.5", 0.0),
    ],
)
def test_rules_by_hand(rule: str, answer: str, reference: str | None, wanted: float) -> None:
    assert scores(rule, [answer], replace(ASK, reference=reference)) == pytest.approx([wanted])


@pytest.mark.parametrize("rule", ["equals", "contains", "number"])
def test_a_rule_that_compares_needs_a_reference(rule: str) -> None:
    with pytest.raises(UserError, match="the prompt has none: add a `reference` column"):
        scores(rule, ["7"], replace(ASK, reference=None))


GOOD = "<think>2 and 3</think>\n<answer>5</answer>"
FORMS: list[tuple[dict[str, Any], dict[str, float]]] = [
    ({"type": "format"}, {
        GOOD: 1, f" {GOOD}\n": 1, f"So: {GOOD}": 0, f"{GOOD} Right?": 0, "<answer>5</answer><think>x</think>": 0,
        "<think>a</think> b <answer>5</answer>": 0, "<think>a</think><answer>5": 0, GOOD + GOOD: 0, "": 0,
        "<think><answer>5</think></answer>": 0}),
    ({"type": "format", "tags": ["sum"]}, {"<sum>5</sum>": 1, GOOD: 0}),
    ({"type": "pattern", "pattern": r"\d+"}, {"it is 12": 1, "none": 0}),
    ({"type": "regex", "pattern": r"\d+", "whole": True}, {"12": 1, "it is 12": 0}),
    ({"type": "length", "target": 4}, {"1234": 1, "12": 0.5, "12345": 0.75, "1" * 9: 0, "": 0}),
    ({"type": "length", "shortest": 2, "longest": 4}, {"1": 0.5, "12": 1, "1234": 1, "123456": 0.5}),
    ({"type": "length", "longest": 2, "unit": "words"}, {"one two": 1, "one two three": 0.5, "北京市": 0.5, "": 1}),
    ({"type": "language", "language": "zh"}, {"北京 2008!": 1, "北京ab": 0.5, "abc": 0, "12": 0}),
    ({"type": "language"}, {"Über 北京": 4 / 6, "да": 0}),
    ({"type": "repetition", "n": 1}, {"a b A": -1 / 3, "a b c": 0, "好好好好": -0.75, "": 0}),
    ({"type": "repetition"}, {"a b c a b c": -1 / 4, "a b": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "wanted"), FORMS, ids=[str(entry) for entry, _ in FORMS])
def test_forms_by_hand(entry: dict[str, Any], wanted: dict[str, float]) -> None:
    assert scores(entry, list(wanted)) == pytest.approx(list(wanted.values()))
    assert len(set(wanted.values())) > 1


def test_a_pattern_that_never_ends_is_a_failure_and_the_next_answer_gets_its_number() -> None:
    endless, after = scores({"type": "pattern", "pattern": "(a+)+b", "seconds": 0.3}, ["a" * 40, "aab"])
    assert isinstance(endless, Failure) and "has not come back after 0.3 s" in endless.what
    assert after == 1.0


WRONG: list[tuple[Any, str]] = [
    ("exakt", r"unknown rule 'exakt'. Known: equals, contains, number, brevity, .*FILE.py:FUNCTION. Did you mean "
              "`equals`"),
    ({"weight": 2}, "has no `type`; wanted one of equals, contains"),
    ({"type": "equals", "wieght": 2}, r"entry 1 \(equals\): `wieght` is no setting of equals. Did you mean `weight`"),
    ({"type": "equals", "weight": "x"}, "`weight` is 'x' .*wanted a number"),
    ({"type": "equals", "weight": 0}, "`weight` is 0, with which it counts for nothing"),
    ({"type": "equals", "name": "a/b"}, "`name` is 'a/b'; wanted letters"),
    ({"type": "length"}, "Give `target`, or `shortest` and `longest`"),
    ({"type": "length", "target": 3, "longest": 4}, "and not both"),
    ({"type": "length", "target": 0}, "`target` is 0; wanted a number of at least 1"),
    ({"type": "pattern", "pattern": "(a"}, r"`pattern` '\(a' is no regular expression: missing \)"),
    ({"type": "pattern"}, "`pattern` is missing"),
    ({"type": "format", "tags": ["<think>"]}, "wanted names without brackets"),
    ({"type": "language", "language": "de"}, "wanted one of zh, en"),
    ({"type": "judge", "model": "m", "prompt": "Rate it."}, r"`url` is missing(.|\n)*has no \{answer\}"),
    ({"type": "judge", "model": "m", "url": "localhost:8000"}, "wanted http://"),
    ({"type": "json_schema"}, "`schema` is missing"),
    ({"type": "model"}, "`path` is missing; name a reward model"),
    ({"type": "function", "path": "mine:f"}, r"`path` is 'mine:f'; wanted FILE\.py:FUNCTION"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "said"), WRONG, ids=[str(entry) for entry, _ in WRONG])
def test_what_is_wrong_with_an_entry_is_said(entry: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        spec_of(entry)
