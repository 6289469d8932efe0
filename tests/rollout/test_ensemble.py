"""Reward models as one: the formulas, and what a list of rewards makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from espalier.errors import UserError
from espalier.rollout.ensemble import SPREAD, Ensemble, combined
from espalier.rollout.rewards.scorer import Means
from espalier.rollout.rewards.table import read_specs
from espalier.rollout.scored import RewardList
from espalier.trees import Tree

MOMENTS = {"a": (1.0, 2.0), "b": (-3.0, 0.5)}
FOUND = {"a": torch.tensor([1.0, 5.0, 3.0]), "b": torch.tensor([-3.0, -3.5, -2.0])}
ON_ONE_SCALE = torch.tensor([[0.0, 2.0, 1.0], [0.0, -1.0, 2.0]])


def ensemble(kind: Any, coefficient: float = 1.0) -> Ensemble:
    made = Ensemble(kind, coefficient)
    made.learn(MOMENTS)
    return made


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [0.0, 0.5, 1.5]),
        ("min", [0.0, -1.0, 1.0]),
        ("uncertainty", [0.0, 0.5 - 2 * 2.25, 1.5 - 2 * 0.25]),  # mean - 2 ((x1 - x2) / 2)^2
        ("sum", [-2.0, 1.5, 1.0]),  # as they come
    ],
)
def test_models_of_unlike_scales_become_one(kind: str, expected: list[float]) -> None:
    made = ensemble(kind, 2.0)
    found = made.total(FOUND, {"a": 1.0, "b": 1.0})
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    spread = made.extras(FOUND)
    assert (spread == {}) == (kind == "sum")
    if spread:
        assert spread[SPREAD].tolist() == pytest.approx([0.0, 1.5, 0.5])


def test_rules_are_added_to_what_the_ensemble_says() -> None:
    found = ensemble("min").total(
        {**FOUND, "rule": torch.tensor([1.0, 0.0, 1.0])}, {"a": 3.0, "rule": 2.0, "b": 1.0}
    )
    assert found.tolist() == pytest.approx([0 * 2 + 2, -1 * 2 + 0, 1 * 2 + 2])


def test_a_model_is_never_called_better_than_all_say() -> None:
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    least, mean = combined(scores, "min", 1), combined(scores, "mean", 1)
    careful = combined(scores, "uncertainty", 0.7)
    assert bool((least <= mean).all()) and bool((careful < mean).all())
    torch.testing.assert_close(careful, mean - 0.7 * ((scores - mean) ** 2).mean(0))


def test_a_score_that_is_missing_stays_missing() -> None:
    scores = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    for kind in ("mean", "min", "uncertainty"):
        assert combined(scores, kind, 1.0).isnan().tolist() == [False, True]  # type: ignore[arg-type]


def test_a_list_logs_each_model_and_how_far_they_are_apart() -> None:
    specs, problems = read_specs([{"type": "model", "path": name} for name in MOMENTS])
    assert not problems
    rewards = RewardList(specs, "stop", Means(), ensemble("min"))
    tree = Tree.join([([1, n], [False, True]) for n in (2, 3, 4)])
    (made,) = rewards.whole([(tree, FOUND, torch.zeros(3))])
    assert made.extras["scores"].tolist() == pytest.approx([0.0, -1.0, 1.0])
    assert made.extras["reward/a"].tolist() == FOUND["a"].tolist(), "as the model says it"
    assert made.extras["reward/ensemble_spread"].tolist() == pytest.approx([0.0, 1.5, 0.5])


def test_a_model_without_moments_is_named() -> None:
    with pytest.raises(UserError, match="b was saved without their mean"):
        Ensemble("min").learn({"a": (0.0, 1.0), "b": None})
    Ensemble("sum").learn({"a": None})
