"""Rules by hand, rules of the user's own, and what is said when one is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.errors import UserError
from espalier.rollout import rewards
from espalier.rollout.rewards import OwnFunction, find_rule


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


def test_a_file_is_a_module_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def length(text): return len(text)\n", "utf-8")
    file = tmp_path / "math.py"  # a name of the standard library
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import math as theirs\n"
        "from beside import length\n"
        "@dataclass\n"
        "class Part:\n"
        "    name: str\n"
        "    weight: float = 1.5\n"
        "def score(prompt, answer, reference=None, **more):\n"
        "    print('noise')\n"
        "    return Part('length').weight * length(answer)\n",
        "utf-8",
    )
    assert find_rule(f"{file}:score")("p", "abcd", None) == 6.0


def test_trls_signature_gets_lists(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def columns(prompts, completions, reference, **more):\n"
        "    return [len(p) + 10 * len(c) + 100 * len(r) for p, c, r in zip(prompts, completions, reference)]\n"
        "def only(completions): return [len(c) for c in completions]\n"
        "def short(completions, **columns): return [1.0]\n"
        "def none(completions, **columns): return [1.0, None]\n"
        "def more(completions, solution): return []\n",
        "utf-8",
    )
    asked = [("p", "ab", "r"), ("pp", "abc", "")]

    def of(name: str) -> OwnFunction:
        found = find_rule(f"{file}:{name}")
        assert isinstance(found, OwnFunction)
        return found

    assert of("columns").many(asked) == [121.0, 32.0]
    assert of("only").many(asked) == [2.0, 3.0]
    with pytest.raises(UserError, match=r"mine\.py:short returned 1 numbers for 2 answers"):
        of("short").many(asked)
    with pytest.raises(
        UserError, match=r"returned None for the answer 'abc' to the prompt 'pp' \(f\.jsonl:3\)"
    ):
        of("none").many(asked, source="f.jsonl:3")
    with pytest.raises(
        UserError, match=r"more\(completions, solution\) wants solution; there are prompts, com"
    ):
        of("more")


def test_what_cannot_be_called_is_said_before_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(answer):\n    return 1.0\n", "utf-8")
    with pytest.raises(
        UserError, match=r"mine\.py: score\(answer\) cannot be called as score\(prompt, answer, ref"
    ):
        find_rule(f"{file}:score")
    file.write_text("import nothing_of_this_name\n", "utf-8")
    with pytest.raises(
        UserError, match=r"mine\.py:1: ModuleNotFoundError: No module named 'nothing_of_this_name'"
    ):
        find_rule(f"{file}:score")
    file.write_text("def score(prompt, answer, reference)\n    return 1.0\n", "utf-8")
    with pytest.raises(UserError, match=r"mine\.py:1: SyntaxError: expected ':'"):
        find_rule(f"{file}:score")


@pytest.mark.slow
def test_a_slow_one_is_told_and_a_long_answer_is_not_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import time\ndef score(prompt, answer, reference):\n    time.sleep(float(answer))\n    return 1\n",
        "utf-8",
    )
    monkeypatch.setattr(rewards, "PATIENCE", 0.2)
    slow, told = OwnFunction(f"{file}:score", 2.0), list[str]()
    assert slow.many([("p", "0", None), ("p", "0.7", None)], source="f.jsonl:3", show=told.append) == [
        1.0,
        1.0,
    ]
    assert len(told) >= 2 and told[0].endswith("mine.py:score: answer 2 of 2 to f.jsonl:3, 0 s so far")
    with pytest.raises(UserError, match=r"has not come back after 2 s \(reward_timeout: 2 for an answer\)"):
        slow("p", "1000", None)
    assert slow("p", "0", None) == 1.0, "the next one gets a new process"


def test_an_unknown_rule_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown rule 'exact'. Known: equals, contains, number, brevity, or .*FILE"
    ):
        find_rule("exact")
