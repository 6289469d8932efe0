"""Reward functions of the user's own: how they are called, and what is said when one is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from espalier.errors import UserError
from espalier.rollout.rewards import function
from espalier.rollout.rewards.function import OwnFunction
from espalier.rollout.rewards.scorer import Failure, silent
from tests.rollout.rewards.conftest import ASK, scorer_of, scores


def of(entry: object, answers: list[str], prompt: str = "12") -> list[float | Failure]:
    return scores(entry, answers, replace(ASK, text=prompt, columns={"solution": "abc", "n": 3}))


def whats(found: list[float | Failure]) -> list[float | str]:
    return [one.what if isinstance(one, Failure) else one for one in found]


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def length(prompt, answer, reference):\n    return len(answer) / len(prompt)\n"
        "def broken(prompt, answer, reference):\n    return float('nan')\n",
        "utf-8",
    )
    assert of(f"{file}:length", ["1234"]) == [2.0]
    assert of({"type": "function", "path": f"{file}:length"}, ["1234", ""]) == [2.0, 0.0]
    (broken,) = of(f"{file}:broken", ["hello"])
    assert isinstance(broken, Failure) and broken.what == "returned nan"
    assert "begins at line 3 of" in broken.cure and broken.cure.endswith("mine.py)")
    with pytest.raises(UserError, match=r"has no function 'lenght'; it has length, broken"):
        of(f"{file}:lenght", [""])
    with pytest.raises(UserError, match=r"there is no file .*yours\.py"):
        of(str(tmp_path / "yours.py:length"), [""])


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
    assert of(f"{file}:score", ["abcd"]) == [6.0]


def test_a_function_gets_what_it_names_and_by_place_where_it_names_nothing(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def by_place(p, a, r): return len(p) + 10 * len(a) + 100 * len(r)\n"
        "def by_name(answer, *, solution, messages, columns, n=0, other=7):\n"
        "    return float(f'{len(answer)}{len(solution)}{len(messages)}{len(columns)}{n}{other}')\n"
        "def column_in_third_place(prompt, answer, solution): return len(solution)\n"
        "def third_is_the_reference(prompt, answer, gold): return len(gold)\n"
        "def all_of_it(answer, **rest): return float(sorted(rest) == "
        "['columns', 'messages', 'n', 'prompt', 'reference', 'solution'])\n",
        "utf-8",
    )
    wanted = {"by_place": 2 + 40 + 100, "by_name": 431237, "column_in_third_place": 3,
              "third_is_the_reference": 1, "all_of_it": 1}  # fmt: skip
    for name, number in wanted.items():
        assert of(f"{file}:{name}", ["abcd"]) == [number], name
    by_name = scorer_of(f"{file}:by_name")
    assert isinstance(by_name, OwnFunction) and by_name.wants == ("solution",)


def test_trls_signature_gets_lists(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def columns(prompts, completions, reference, n, **more):\n"
        "    return [len(p) + 10 * len(c) + 100 * len(r) + 1000 * k + 10000 * len(s) for p, c, r, k, s in "
        "zip(prompts, completions, reference, n, more['solution'])]\n"
        "def only(completions): return [len(c) for c in completions]\n"
        "def short(completions, **columns): return [1.0]\n"
        "def none(completions, **columns): return [1.0, None]\n"
        "def raises(completions): raise KeyError('x')\n"
        "def more(completions, missing): return []\n",
        "utf-8",
    )
    assert of(f"{file}:columns", ["ab", "abc"]) == [33122.0, 33132.0]
    assert of(f"{file}:only", ["ab", "abc"]) == [2.0, 3.0]
    assert whats(of(f"{file}:short", ["ab", "abc"])) == ["returned 1 numbers for 2 answers"] * 2
    assert whats(of(f"{file}:none", ["ab", "abc"])) == [1.0, "returned None"]
    raised, again = of(f"{file}:raises", ["ab", "abc"])
    assert isinstance(raised, Failure) and raised == again and raised.more == "(the first of a batch)"
    assert raised.what.startswith(f"raised {file}:6: KeyError: 'x'")
    more = scorer_of(f"{file}:more")
    assert isinstance(more, OwnFunction) and more.wants == ("missing",)


def test_what_cannot_be_called_is_said_before_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    for text, said in (
        ("def score(text):\n    return 1.0\n", r"mine\.py: score\(text\) cannot be called as score\(prompt, answer, ref"),
        ("import nothing_of_this_name\n", r"mine\.py:1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def score(prompt, answer, reference)\n    return 1.0\n", r"mine\.py:1: SyntaxError: expected ':'"),
        ("import os\nos._exit(3)\n", "does not even load .*ended with 3"),
    ):  # fmt: skip
        file.write_text(text, "utf-8")
        with pytest.raises(UserError, match=said):
            scorer_of(f"{file}:score")


@pytest.mark.slow
def test_a_slow_one_is_told_and_a_long_answer_is_not_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import time\ndef score(prompt, answer, reference):\n    time.sleep(float(answer))\n    return 1\n",
        "utf-8",
    )
    monkeypatch.setattr(function, "PATIENCE", 0.2)
    slow, told = OwnFunction(f"{file}:score", 2.0), list[str]()
    assert list(slow(ASK, ["0", "0.7"], told.append)) == [1.0, 1.0]
    assert len(told) >= 2 and told[0].endswith("mine.py:score: answer 2 of 2 to f.jsonl:3, 0 s so far")
    late, next_one = slow(ASK, ["1000", "0"], silent)
    assert isinstance(late, Failure)
    assert late.what == "has not come back after 2 s (reward_timeout: 2 for an answer)"
    assert next_one == 1.0, "the next one gets a new process"


def test_one_that_dies_fails_for_its_answer_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import os\ndef score(answer): return os._exit(3) if answer == 'x' else 2\n", "utf-8")
    first, dead, last = of(f"{file}:score", ["a", "x", "b"])
    assert (first, last) == (2.0, 2.0)
    assert isinstance(dead, Failure) and "took its process with it" in dead.what and "with 3" in dead.what
