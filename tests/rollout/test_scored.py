"""A list of rewards: the sum by its weights, what is left out, and what is said."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.errors import UserError
from espalier.rollout import scored
from espalier.rollout.asked import Ask
from espalier.rollout.experience import AnswerGroup
from espalier.rollout.rewards.scorer import Means
from espalier.rollout.rewards.table import counted, paths_of, read_specs
from espalier.rollout.scored import OnFailure, RewardList
from espalier.trees import Tree


def group(texts: list[str], number: int = 1, **ask: Any) -> AnswerGroup:
    paths = [([9, 9, *range(10, 10 + len(text))], [False] * 2 + [True] * len(text)) for text in texts]
    tree = Tree.join(paths, source=f"f.jsonl:{number}")
    return AnswerGroup(Ask([9, 9], "asked", source=tree.source, **ask), tree, texts, [True] * len(texts))


def rewards(entries: list[Any], on_failure: OnFailure = "stop", said: list[str] | None = None) -> RewardList:
    specs, problems = read_specs(entries)
    assert problems == []
    return RewardList(specs, on_failure, Means(say=(said if said is not None else []).append))


def trees(made: RewardList, groups: list[AnswerGroup]) -> list[Tree]:
    none = [torch.zeros(len(g.texts)) for g in groups]
    return made.whole(list(zip([g.tree for g in groups], made.by_rules(groups, 0, 1), none, strict=True)))


@pytest.fixture
def odd(tmp_path: Path) -> str:
    """A function that likes no answer with an x."""
    file = tmp_path / "mine.py"
    file.write_text("def odd(prompt, answer, reference): return None if 'x' in answer else 1.0\n", "utf-8")
    return f"{file}:odd"


def test_the_sum_by_weights_and_each_alone(odd: str) -> None:
    made = rewards(["brevity", {"type": "equals", "weight": 2}, {"type": odd, "weight": -0.5}, "brevity"])
    (tree,) = trees(made, [group(["abcd", "ef"], reference="ef")])
    wanted = {"reward/brevity": [-0.04, -0.02], "reward/equals": [0.0, 1.0], "reward/odd": [1.0, 1.0],
              "reward/brevity_2": [-0.04, -0.02], "scores": [-0.58, 1.46]}  # fmt: skip
    assert set(tree.extras) == set(wanted)
    for name, numbers in wanted.items():
        torch.testing.assert_close(tree.extras[name], torch.tensor(numbers), msg=name)


def test_a_failure_names_answer_and_place(odd: str) -> None:
    said = (r"reward .*mine\.py:odd returned None for the answer 'bx' to the prompt 'asked' \(f\.jsonl:4\)\. A finite .*"
            r"on_reward_failure: skip leaves")  # fmt: skip
    with pytest.raises(UserError, match=said):
        trees(rewards(["brevity", odd]), [group(["a"]), group(["a", "bx"], 4)])


def test_what_is_skipped_is_in_no_tree_and_counted_and_said_once(odd: str) -> None:
    said = list[str]()
    made = rewards(["brevity", odd], "skip", said)
    one, three = trees(made, [group(["a", "bxc", "de"], 1), group(["x"], 2), group(["abc", "ax"], 3)])
    assert [tree.source for tree in (one, three)] == ["f.jsonl:1", "f.jsonl:3"]
    assert [tokens.tolist()[2:] for tokens, _ in one.paths()] == [[10], [10, 11]] and one.n_trained == 3
    torch.testing.assert_close(one.extras["scores"], torch.tensor([0.99, 0.98]))
    assert one.extras["reward_failures"].tolist() == [3.0, 3.0] and three.extras["reward_failures"] == 3.0
    assert len(said) == 1 and "'bxc'" in said[0] and "reward_failures counts them" in said[0]
    assert trees(made, [group(["x", "xx"])]) == []
    assert re.search(
        r"none of the 2 answers of this rollout has a reward: .*returned None", str(made.no_reward(2))
    )
    assert all(math.isfinite(v) for tree in (one, three) for v in tree.extras["scores"].tolist())


def test_what_a_reward_needs_of_a_record_is_looked_for_first(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f(answer, solution): return 1.0\n", "utf-8")
    asks = [
        Ask([1], "q", "r", "f.jsonl:1", columns={"solution": "s", "tests": "t"}),
        Ask([1], "q", None, "f.jsonl:2"),
    ]
    for entry, said in (
        ("equals", "f.jsonl:2: the reward equals compares with a reference, and the prompt has none"),
        ({"type": "judge", "url": "http://x", "model": "m", "prompt": "{answer} {reference}"}, "the reward judge compares"),
        (f"{file}:f", "mine.py:f wants the column 'solution', and this record has none beside the conversation"),
        ({"type": "unit_tests"}, "the reward unit_tests wants the column 'tests'"),
    ):  # fmt: skip
        made = rewards([entry])
        made.check(asks[:1])
        with pytest.raises(UserError, match=said):
            made.check(asks)


def test_a_run_is_compared_by_what_changes_its_numbers(odd: str) -> None:
    entries = [{"type": odd, "seconds": 3}, {"type": "model", "path": "a/judge", "weight": 2}]
    assert list(paths_of(entries)) == [("function", odd), ("model", "a/judge")]
    function, model = counted(entries)
    assert function == {"type": "function", "name": "odd", "weight": 1.0, "path": "odd"}
    assert model["path"] is None and model["weight"] == 2.0 and "seconds" not in function


class _Gathered(Exception):
    """A rank has come to where the ranks tell each other."""


def test_ranks_share_the_answers_and_know_of_each_others_failures(
    odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank's share is what it tells; what all have told is what one rank alone finds."""
    groups = [group(["a", "bx"], 1), group(["abc"], 2), group(["x"], 3)]
    told: list[list[Any]] = []

    def tell(own: list[Any]) -> list[Any]:
        told.append(own)
        raise _Gathered

    made = rewards(["brevity", odd], "skip")
    monkeypatch.setattr(scored, "gather_object", tell)
    for rank in range(2):
        with pytest.raises(_Gathered):
            made.by_rules(groups, rank, 2)
    assert [[at for at, _ in own] for own in told] == [[0, 2], [1]]
    answers = iter([told[0] + told[1], []])
    monkeypatch.setattr(scored, "gather_object", lambda own: next(answers))
    together, alone = made.by_rules(groups, 1, 2), made.by_rules(groups, 0, 1)
    for one, other in zip(together, alone, strict=True):
        assert set(one) == {"brevity", "odd"}
        torch.testing.assert_close(one, other, equal_nan=True)
    problem = UserError("from the other rank")
    answers = iter([[], [problem]])
    with pytest.raises(UserError, match="from the other rank"):
        made.by_rules(groups, 1, 2)
