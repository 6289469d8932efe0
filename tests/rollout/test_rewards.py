"""Rules by hand, rules of the user's own, and what is said when one is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.errors import UserError
from espalier.rollout.rewards import find_rule


@pytest.mark.parametrize(
    ("rule", "answer", "reference", "wanted"),
    [
        ("equals", " Paris. ", "paris", 1.0),
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
    ],
)
def test_rules_by_hand(rule: str, answer: str, reference: str | None, wanted: float) -> None:
    assert find_rule(rule)("asked", answer, reference) == pytest.approx(wanted)


@pytest.mark.parametrize("rule", ["equals", "contains", "number"])
def test_a_rule_that_compares_needs_a_reference(rule: str) -> None:
    with pytest.raises(UserError, match="the prompt has none: add a `reference` column"):
        find_rule(rule)("asked", "7", None)


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def length(prompt, answer, reference):\n    return len(answer) / len(prompt)\n"
        "def broken(prompt, answer, reference):\n    return float('nan')\n",
        "utf-8",
    )
    assert find_rule(f"{file}:length")("12", "1234", None) == 2.0
    with pytest.raises(UserError, match=r"mine\.py:broken returned nan for the answer 'hello'"):
        find_rule(f"{file}:broken")("12", "hello", None)
    with pytest.raises(UserError, match=r"has no function 'lenght'; it has length, broken"):
        find_rule(f"{file}:lenght")
    with pytest.raises(UserError, match=r"there is no file .*yours\.py"):
        find_rule(str(tmp_path / "yours.py:length"))


def test_an_unknown_rule_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown rule 'exact'. Known: equals, contains, number, brevity, or .*FILE"
    ):
        find_rule("exact")
