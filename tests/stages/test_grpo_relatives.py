"""GRPO's relatives: names of papers as rows of tables, dynamic sampling, the price of long answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from espalier import cli
from espalier.config import build
from espalier.config.names import PRESETS
from espalier.errors import UserError
from espalier.runs.catalogue import CLASSES, check_possible
from espalier.stages.groups import GroupOptions, with_spread
from espalier.stages.objectives.grpo import GRPOOptions
from espalier.stages.rollout_options import RolloutOptions
from espalier.trees import Tree
from tests.stages.conftest import rows, run

Make = Callable[..., dict[str, Any]]


def built(**keys: Any) -> Any:
    raw = {"stage": "grpo", "model_name_or_path": "m", "dataset": "d", "reward_function": "brevity", **keys}
    return build(raw, CLASSES["grpo"], all_classes=CLASSES)


@pytest.mark.parametrize("key", PRESETS["grpo"])
def test_a_paper_s_name_is_rows_of_the_tables(key: str) -> None:
    for value, wanted in PRESETS["grpo"][key].items():
        found = built(**{key: value})
        for name, setting in wanted.items():
            (kind,) = [kind for kind in (GRPOOptions, GroupOptions, RolloutOptions) if hasattr(kind, name)]
            assert getattr(found[kind], name) == setting
    with pytest.raises(UserError, match=rf"`{key}`: mine is none of "):
        built(**{key: "mine"})


def test_the_documents_name_every_algorithm() -> None:
    page = (Path(__file__).parents[2] / "docs" / "stages.md").read_text("utf-8")
    assert all(f"| `{name}` |" in page for name in PRESETS["grpo"]["algorithm"])


def test_what_is_written_itself_stays() -> None:
    found = built(algorithm="dapo", clip_high=0.5)
    assert (found[GRPOOptions].clip_high, found[GroupOptions].dynamic_sampling) == (0.5, 10)
    assert found[RolloutOptions].kl_coef == 0
    assert built(scale_rewards=False)[GRPOOptions].advantages == "dr_grpo"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"policy_loss": "cispo", "clip_low": 0.1}, "`clip_low` belongs to policy_loss: clip"),
        ({"overlong_buffer": 200}, "overlong_buffer 200 is more than max_new_tokens 128"),
        ({"group_size": 1}, "group_size: 1 in grpo"),
    ],
)
def test_what_does_not_go_together_is_said(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        check_possible("grpo", built(**keys))
    assert words in str(error.value)
    check_possible("grpo", built(group_size=1, advantages="reinforce_pp"))


def group(*scores: float) -> Tree:
    tree = Tree.join([([1, 2], [False, True])] * len(scores))
    return tree.with_extras(scores=torch.tensor(scores))


def test_groups_of_equal_scores_are_replaced() -> None:
    good, equal, other = group(0, 1), group(1, 1), group(3, 4)
    asked: list[tuple[int, int]] = []
    answers = iter([[group(0, 0), other], [group(5, 5)], [group(6, 7)]])

    def sample(count: int, number: int) -> list[Tree]:
        asked.append((count, number))
        return next(answers)

    found, sampled = with_spread([equal, good, equal], sample, rounds=2)
    assert found == [other, good, equal] and sampled == 6, "one is left where the rounds are used up"
    assert asked == [(2, 1), (1, 2)]
    found, sampled = with_spread(found, sample, rounds=5)
    assert [tree.extras["scores"].tolist() for tree in found] == [[3, 4], [0, 1], [6, 7]] and sampled == 4
    assert with_spread([good], sample, rounds=5) == ([good], 1)


@pytest.mark.slow
def test_dapo_by_the_command_line(options: Make, tmp_path: Path) -> None:
    """A reward that tells the answers to some prompts apart only: their places are filled from other prompts."""
    rule = tmp_path / "rule.py"
    rule.write_text(
        "def rule(prompt, answer, reference):\n    return float(len(answer)) if len(prompt) % 2 else 0.0\n"
    )
    chosen = options("grpo", algorithm="dapo", reward_function=f"{rule}:rule", max_steps=2, samples=0)
    file = tmp_path / "dapo.yaml"
    file.write_text(json.dumps(chosen), "utf-8")
    assert cli.guarded(lambda: cli.app(["grpo", str(file)], standalone_mode=False)) == 0
    steps = [row for row in rows(chosen) if "loss" in row]
    assert all(row["sampled_groups"] > 1 for row in steps)
    assert all(row["groups_with_spread"] == 1 for row in steps)
    without = options("grpo", algorithm="dapo", dynamic_sampling=0, reward_function=f"{rule}:rule", max_steps=1,
                      samples=0, output_dir=str(tmp_path / "without"))  # fmt: skip
    run(without)
    (step,) = [row for row in rows(without) if "loss" in row]
    assert "sampled_groups" not in step and step["groups_with_spread"] < 1


@pytest.mark.slow
def test_single_answers_are_compared_with_the_rollout(options: Make) -> None:
    """REINFORCE++ needs no groups: the loss of a first step is minus the mean advantage, which is 0."""
    chosen = options("grpo", algorithm="reinforce_pp", group_size=1, max_steps=2, samples=0)
    run(chosen)
    first, second = (row for row in rows(chosen) if "loss" in row)
    assert first["groups_with_spread"] > 0.5 and first["grad_norm"] > 0 and second["kl"] > 0


@pytest.mark.slow
def test_a_teacher_is_asked_about_every_sampled_token(options: Make, world: Path, tmp_path: Path) -> None:
    """With a rule that says 0 the loss of a token is its log-ratio; the policy as its own teacher learns nothing.
    (Where it ends: `test_toys.py`.)"""
    rule = tmp_path / "rule.py"
    rule.write_text("def rule(prompt, answer, reference):\n    return 0.0\n", "utf-8")
    shutil.copytree(world / "base", tmp_path / "sure")
    (weights,) = (tmp_path / "sure").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["model.norm.weight"] *= 8  # the same model, of stronger opinions
    save_file(tensors, weights, {"format": "pt"})
    made = []
    for teacher in (tmp_path / "sure", world / "base"):
        chosen = options("grpo", teacher_model=str(teacher), reward_function=f"{rule}:rule", kl_coef=0.0,
                         teacher_coef=0.5, max_steps=1, samples=0, output_dir=str(tmp_path / f"of-{teacher.name}"))  # fmt: skip
        run(chosen)
        made.append(next(row for row in rows(chosen) if "loss" in row))
    other, itself = made
    assert other["teacher_kl"] > 1 and other["grad_norm"] > 0
    assert other["loss"] * other["answer_tokens"] == pytest.approx(0.5 * other["teacher_kl"], rel=1e-4)
    assert itself["teacher_kl"] == 0 and itself["idle_steps"] == 1


@pytest.mark.slow
def test_long_answers_are_fined(options: Make, tmp_path: Path) -> None:
    """brevity is minus the length; the last half of 6 tokens costs up to 100 more."""
    made = []
    for name, buffer in (("plain", 0), ("fined", 0.5)):
        chosen = options("grpo", overlong_buffer=buffer, overlong_penalty=100.0, max_steps=1, samples=0,
                         output_dir=str(tmp_path / name))  # fmt: skip
        run(chosen)
        made.append(next(row for row in rows(chosen) if "loss" in row))
    assert made[0]["answer_tokens"] == made[1]["answer_tokens"] > 3
    assert made[1]["reward"] < made[0]["reward"] - 10
