"""Words behind a command: dashed options are overrides, and the file is found among them."""

from __future__ import annotations

import doctest

import pytest

from espalier.config import words
from espalier.config.words import file_and_overrides
from espalier.errors import UserError


def test_the_docstring() -> None:
    assert doctest.testmod(words).attempted > 0 and not doctest.testmod(words).failed


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("f.yaml --learning_rate 3", ["learning_rate=3"]),
        ("f.yaml --learning-rate=3", ["learning_rate=3"]),
        ("--learning-rate 3 f.yaml", ["learning_rate=3"]),
        ("--skip-bad f.yaml seed=1", ["skip_bad=true", "seed=1"]),
        ("f.yaml --skip-bad --seed 1", ["skip_bad=true", "seed=1"]),
        ("f.yaml --skip-bad false", ["skip_bad=false"]),
        ("f.yaml --skip-bad seed=1", ["skip_bad=true", "seed=1"]),
        ("f.yaml --reward-clip -1", ["reward_clip=-1"]),
        ("f.yaml --my-step.max-steps 2", ["my-step.max_steps=2"]),
        ("f.yaml --dataset a/b.jsonl", ["dataset=a/b.jsonl"]),
        ("f.yaml --deepspeed other.yaml", ["deepspeed=other.yaml"]),
        ("f.yaml word", ["word"]),
    ],
)
def test_each_way_to_write_an_option(typed: str, wanted: list[str]) -> None:
    assert file_and_overrides(typed.split()) == ("f.yaml", wanted)


def test_without_a_file_that_is_said() -> None:
    with pytest.raises(UserError, match=r"no FILE.yaml"):
        file_and_overrides(["--seed", "3"])
