"""How many prompts are a step of PPO and GRPO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from espalier.errors import UserError
from tests.stages.conftest import rows, run

Make = Callable[..., dict[str, Any]]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_tokens_per_step_is_the_most_that_a_step_can_hold(stage: str, layout: str, options: Make) -> None:
    told: dict[int, float] = {}
    for tokens in (300, 600):
        chosen = options(
            stage,
            per_device_train_batch_size=None,
            tokens_per_step=tokens,
            max_prompt_length=60,
            group_size=2,
            layout=layout,
            max_steps=2,
            resume=False,
        )
        run(chosen)
        steps = [row for row in rows(chosen) if "loss" in row]
        answers = [row["answers"] if "answers" in row else row["tokens"] for row in steps]
        assert answers
        told[tokens] = sum(answers) / len(answers)
    assert told[600] > 1.5 * told[300], "twice the tokens are about twice the answers"


def test_tokens_that_hold_no_prompt_are_refused(options: Make) -> None:
    chosen = options("grpo", per_device_train_batch_size=None, tokens_per_step=20)
    with pytest.raises(
        UserError, match=r"tokens_per_step 20 is too little for a prompt of up to \d+ tokens with 4 answers"
    ):
        run(chosen)
