"""Which prompts are rolled out when, how often each answer is trained on, and continuing between two rollouts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from espalier.data.steps.feed import Rows
from espalier.rollout.feed import Mix, RolloutFeed, RolloutPlan
from espalier.trees import Tree, lay_out_tree


class Log:
    """A feed over numbered prompts whose trees say their prompt and rollout."""

    def __init__(self, prompts: int, mix: Mix | None = None, **settings: Any) -> None:
        self.rollouts: list[list[int]] = []
        rows = Rows(lay_out_tree, 10_000)
        defaults: dict[str, Any] = {"prompts_per_rollout": 4, "trees_per_step": 2, "seed": 3}
        self.feed = RolloutFeed(prompts, self.roll, rows, RolloutPlan(**(defaults | settings)), mix=mix)

    def roll(self, places: list[int], number: int) -> list[Tree]:
        assert number == self.first + len(self.rollouts)
        self.rollouts.append(places)
        made = []
        for place in places:
            tree = Tree.from_path([place, 1, 2], [False, True, True])
            marks = {"place": torch.tensor([float(place)]), "rollout": torch.tensor([float(number)])}
            made.append(tree.with_extras(**marks))
        return made

    first = 0

    def steps(self) -> list[list[tuple[int, int]]]:
        """Of each step, the (prompt, rollout) of its trees."""
        found = []
        for batches in self.feed.steps():
            pairs = [
                (int(p), int(r))
                for b in batches
                for p, r in zip(b.extras["place"], b.extras["rollout"], strict=True)
            ]
            found.append(pairs)
        return found


@pytest.mark.parametrize("passes", [1, 3])
def test_every_answer_of_a_rollout_is_trained_on_once_a_pass(passes: int) -> None:
    log = Log(8, passes=passes, epochs=2)
    steps = log.steps()
    assert len(steps) == log.feed.total_steps == 4 * 2 * passes
    assert all(len(step) == 2 for step in steps)
    for number in range(4):
        mine = steps[number * 2 * passes : (number + 1) * 2 * passes]
        assert Counter(p for step in mine for p, _ in step) == dict.fromkeys(log.rollouts[number], passes)
        assert {r for step in mine for _, r in step} == {number}
        for one in range(passes):
            assert len({p for step in mine[2 * one : 2 * one + 2] for p, _ in step}) == 4
    assert sorted(log.rollouts[0] + log.rollouts[1]) == list(range(8)), "an epoch takes every prompt once"
    assert log.rollouts[:2] != log.rollouts[2:], "the next epoch has another order"
    assert log.feed.epoch == pytest.approx(2.0)


def test_prompts_that_do_not_divide_run_on_into_the_next_epoch() -> None:
    log = Log(5, epochs=4)
    log.steps()
    flat = [place for rollout in log.rollouts for place in rollout]
    assert len(flat) == 20 and all(sorted(flat[i : i + 5]) == list(range(5)) for i in range(0, 20, 5))


def test_a_rollout_is_never_larger_than_the_prompts() -> None:
    log = Log(3, prompts_per_rollout=64, trees_per_step=2, epochs=1)
    assert [len(step) for step in log.steps()] == [2, 1]


def test_max_steps_end_a_rollout_in_its_middle() -> None:
    log = Log(8, passes=2, max_steps=6)
    assert len(log.steps()) == 6 and len(log.rollouts) == 2


def test_a_checkpoint_falls_between_two_rollouts_and_continues_there() -> None:
    whole = Log(8, passes=2, epochs=3)
    truth = whole.steps()
    broken = Log(8, passes=2, epochs=3)
    seen = []
    for i, _ in enumerate(broken.feed.steps()):
        seen.append(broken.feed.resumable)
        if i == 7:
            break
    assert seen == [False, False, False, True] * 2
    place = broken.feed.place()
    again = Log(8, passes=2, epochs=3)
    again.first = place["rollout"]
    again.feed.restore(place)
    assert again.steps() == truth[8:]
    with pytest.raises(
        ValueError, match=r"over 8 prompts and there are 9 now: the data changed.*resume=false"
    ):
        Log(9).feed.restore(place)


def test_a_second_data_set_comes_in_by_the_number_of_the_step() -> None:
    extras = {"place": torch.tensor([99.0]), "rollout": torch.tensor([0.0])}
    document = Tree.from_path([9, 9], [False, True], extras=extras)
    numbers = []

    def mix(trees: list[Tree], step: int) -> list[Tree]:
        numbers.append(step)
        return [*trees, document]

    steps = Log(4, mix=mix, epochs=1).steps()
    assert [{p for p, _ in step} >= {99} and len(step) for step in steps] == [3, 3] and numbers == [1, 2]


@pytest.mark.parametrize(("left", "passes"), [(3, 2), (1, 1)])
def test_a_rollout_that_has_lost_trees_is_as_many_steps(left: int, passes: int) -> None:
    whole, log = Log(8, passes=passes), Log(8, passes=passes)
    roll = log.roll
    log.feed._roll = lambda places, number: roll(places, number)[:left]
    steps = log.steps()
    assert len(steps) == len(whole.steps()) == log.feed.total_steps and all(steps)
    for number in range(2):
        mine = steps[number * 2 * passes : (number + 1) * 2 * passes]
        assert {p for step in mine for p, _ in step} == set(log.rollouts[number][:left])
        assert {r for step in mine for _, r in step} == {number}
