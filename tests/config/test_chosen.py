"""Some steps of a pipeline: which ones a choice means, and what must be there before they begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.config import Chosen, RawConfig, check_made
from espalier.errors import UserError

STEPS = [
    RawConfig({"name": "pretrain", "stage": "pretrain"}),
    RawConfig({"name": "sft", "stage": "sft", "model_name_or_path": "run:pretrain"}),
    RawConfig({"name": "reward", "stage": "reward", "model_name_or_path": "run:sft"}),
    RawConfig(
        {"name": "ppo", "stage": "ppo", "model_name_or_path": "run:sft", "rewards": [{"path": "run:reward"}]}
    ),
]


def names(chosen: Chosen) -> list[str]:
    return [step["name"] for step in chosen.of(STEPS)]


def test_a_choice_means_steps_in_the_order_of_the_file() -> None:
    assert names(Chosen()) == ["pretrain", "sft", "reward", "ppo"]
    assert names(Chosen(only=("ppo", "sft"))) == ["sft", "ppo"]
    assert names(Chosen(first="reward")) == ["reward", "ppo"]
    assert names(Chosen(last="sft")) == ["pretrain", "sft"]
    assert names(Chosen(first="sft", last="reward")) == ["sft", "reward"]
    assert names(Chosen(first="sft", last="sft")) == ["sft"]


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (
            Chosen(only=("stf",)),
            r"--only stf: there is no such step. Did you mean `sft`\? The steps: pretrain, sft,",
        ),
        (Chosen(first="x", last="y"), r"(?s)--from x: .*--until y: there is no such step"),
        (Chosen(first="ppo", last="sft"), "--from ppo comes after --until sft"),
        (Chosen(only=("sft",), last="ppo"), "Leave out --from and --until"),
    ],
)
def test_a_choice_that_means_nothing_is_said(chosen: Chosen, told: str) -> None:
    with pytest.raises(UserError, match=told):
        chosen.of(STEPS)


def test_one_stage_has_no_steps_to_choose() -> None:
    assert Chosen().of([RawConfig({"stage": "sft"})]) == [{"stage": "sft"}]
    with pytest.raises(UserError, match="one stage, not a pipeline"):
        Chosen(only=("sft",)).of([RawConfig({"stage": "sft"})])


def test_the_words_are_those_that_the_command_line_reads() -> None:
    assert Chosen(("a", "b")).words() == ["--only", "a", "--only", "b"]
    assert Chosen(first="a", last="b").words() == ["--from", "a", "--until", "b"]


def test_what_an_earlier_step_has_not_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"(?s)of ppo is run:sft, and sft .*of ppo is run:reward.*--only sft --only reward"
    ):
        check_made(STEPS[3:], tmp_path)
    for step in ("sft", "reward"):
        (tmp_path / step / "model").mkdir(parents=True)
    check_made(STEPS[3:], tmp_path)
    with pytest.raises(UserError, match="run:pretrain"):
        check_made(STEPS[1:], tmp_path)
    check_made(STEPS, tmp_path)
