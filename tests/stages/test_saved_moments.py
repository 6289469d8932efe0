"""A reward model is saved with the mean and the spread of its scores, and PPO counts from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from espalier.errors import UserError
from espalier.models.heads import ScalarHead
from espalier.models.saved import read_scalar_head
from espalier.stages.critic import foresee
from espalier.stages.objectives import ppo
from espalier.stages.shaping import ScoreNormalizer, find_normalizer
from tests.stages.conftest import rows, run

Make = Callable[..., dict[str, Any]]


def model_of(moments: tuple[float, float] | None) -> Any:
    return SimpleNamespace(score_moments=moments)


@pytest.fixture
def judge(options: Make, tmp_path: Path) -> Path:
    run(options("reward", output_dir=str(tmp_path / "judge"), max_steps=3))
    return tmp_path / "judge" / "reward" / "model"


@pytest.mark.slow
def test_moments_are_those_of_the_held_out_answers(judge: Path, world: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(judge).eval()
    tokenizer = AutoTokenizer.from_pretrained(judge)
    found = []
    with torch.no_grad():
        for line in (world / "pref_dev.jsonl").read_text("utf-8").splitlines():
            pair = json.loads(line)
            for name in ("chosen", "rejected"):
                turns = [
                    {"role": "user", "content": pair["prompt"]},
                    {"role": "assistant", "content": pair[name]},
                ]
                text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
                ids = tokenizer.encode(text, add_special_tokens=False, return_tensors="pt")
                found.append(float(model(input_ids=ids).logits))
    head = read_scalar_head(str(judge))
    assert head is not None and head.moments is not None
    assert head.moments == pytest.approx((fmean(found), stdev(found)), rel=1e-4)
    assert stdev(found) > 1e-3, "scores that are all alike prove nothing"


@pytest.mark.slow
def test_ppo_pays_by_the_saved_moments_and_its_critic_starts_there(
    judge: Path, options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = read_scalar_head(str(judge))
    assert head is not None and head.moments is not None
    mean, deviation = head.moments
    seen: list[Any] = []
    shaped = ppo.with_shaped
    monkeypatch.setattr(
        ppo, "with_shaped", lambda trees, normalise: (seen.extend(made := shaped(trees, normalise)), made)[1]
    )
    started: list[ScalarHead] = []

    def watched(critic: Any, *numbers: float) -> None:
        foresee(critic, *numbers)
        started.append(critic.scalar_head)

    monkeypatch.setattr(ppo, "foresee", watched)
    made = options("ppo", reward_model=str(judge), max_steps=2, eval_steps=0)
    run(made)
    for tree in seen:
        expected = (tree.extras["scores"] - mean) / deviation
        torch.testing.assert_close(tree.extras["shaped"], expected, rtol=1e-4, atol=1e-4)
    assert len(seen) > 1
    (critic,) = started
    assert critic.offset is not None and critic.offset.item() == pytest.approx(-mean / deviation, rel=1e-4)
    folder = Path(made["output_dir"]) / "ppo" / "critic"
    kept = read_scalar_head(str(folder))
    assert kept is not None and kept.moments is None, "a critic is no reward model"
    assert kept.offset is not None and kept.offset.item() == pytest.approx(-mean / deviation, rel=1e-4)
    assert any("explained_variance" in row or "value_loss" in row for row in rows(made))


def test_a_head_says_the_normalised_number() -> None:
    head, hidden = ScalarHead(8), torch.randn(5, 8)
    head.moments = (0.5, 0.1)
    before = head(hidden)
    head.rescale(0.5, 0.1)
    torch.testing.assert_close(head(hidden), (before - 0.5) / 0.1, rtol=1e-4, atol=1e-4)
    again = head(hidden)
    head.rescale(-1.0, 2.0)
    torch.testing.assert_close(head(hidden), (again + 1) / 2, rtol=1e-4, atol=1e-4)
    assert head.moments is None


@pytest.mark.parametrize("weight", [1.0, 2.0, -0.5])
def test_a_critic_foresees_what_is_paid_for_a_weighted_score(weight: float) -> None:
    normalizer = find_normalizer("auto", {"model": (weight, model_of((3.0, 0.5)))}, relative=False)
    assert normalizer.shift is not None
    head, hidden = ScalarHead(8), torch.randn(5, 8)
    scores = head(hidden).detach()
    critic: Any = SimpleNamespace(scalar_head=head)
    foresee(critic, weight, *normalizer.shift)
    torch.testing.assert_close(head(hidden), normalizer(weight * scores), rtol=1e-4, atol=1e-4)


def test_auto_is_saved_only_where_one_model_says_so() -> None:
    def kind(models: dict[str, tuple[float, Any]], relative: bool = False) -> Any:
        return find_normalizer("auto", models, relative=relative).shift

    said = model_of((1.0, 2.0))
    assert kind({"a": (1.0, said)}) is not None
    assert kind({"a": (1.0, said), "b": (1.0, None)}) is None
    assert kind({"a": (1.0, model_of(None))}) is None and kind({"a": (1.0, None)}) is None
    assert kind({"a": (1.0, said)}, relative=True) is None
    for models in ({"a": (1.0, None)}, {"a": (1.0, said), "b": (1.0, said)}):
        with pytest.raises(UserError, match="score_normalization: saved wants"):
            find_normalizer("saved", models, relative=False)
    scores = torch.tensor([1.0, 3.0])
    assert find_normalizer("saved", {"a": (1.0, said)}, relative=False)(scores).tolist() == pytest.approx(
        [0.0, 1.0]
    )
    assert isinstance(find_normalizer("scale", {}, relative=False), ScoreNormalizer)


@pytest.mark.slow
def test_two_reward_models_of_other_seeds_as_one(options: Make, tmp_path: Path) -> None:
    for seed in (1, 2):
        run(options("reward", output_dir=str(tmp_path), name=f"judge{seed}", max_steps=3, seed=seed))
    listed = [{"type": "model", "path": str(tmp_path / f"judge{seed}" / "model")} for seed in (1, 2)]
    chosen = {"rewards": listed, "reward_function": None, "max_steps": 1, "eval_steps": 0, "resume": False}
    found = {}
    for kind in ("mean", "min"):
        made = options("grpo", reward_ensemble=kind, **chosen)
        run(made)
        (row,) = [row for row in rows(made) if "reward" in row]
        assert row["reward/ensemble_spread"] > 0 and row["reward/judge1"] != row["reward/judge2"]
        found[kind] = row["reward"]
    assert found["min"] < found["mean"], "the answers are the same"
    with pytest.raises(UserError, match="is about several reward models"):
        run(options("grpo", rewards=listed[:1], reward_function=None, reward_ensemble="min"))
