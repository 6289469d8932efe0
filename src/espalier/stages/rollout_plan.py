"""How the prompts of PPO and GRPO become rollouts and steps."""

from __future__ import annotations

from espalier.data.steps.feed import Rows
from espalier.errors import UserError
from espalier.rollout.asks import Asks
from espalier.rollout.feed import RolloutPlan
from espalier.stages.rollout_options import RolloutOptions
from espalier.stages.setup import Setup


def rollout_plan(setup: Setup, asks: Asks, rows: Rows, group_size: int, passes: int) -> RolloutPlan:
    """How the prompts of a run become rollouts and steps.

    With `tokens_per_step` a step takes as many prompts as surely fit: nobody knows before how long the answers will be,
    and the number of steps, which the learning rate follows, must not depend on it.

    Args:
        asks: to be trained on.
        rows: of the models that are trained.
        group_size: answers to a prompt.
        passes: over each rollout.

    Raises:
        UserError: `tokens_per_step` is too little for one prompt with its answers.
    """
    plan, new_tokens = setup.plan, setup.option(RolloutOptions).max_new_tokens
    per_step = plan.trees_per_step
    if per_step is None:
        assert plan.tokens_per_step is not None
        shared = rows.shares_prompts and not rows.unshared
        most = (asks.longest if shared else group_size * asks.longest) + group_size * new_tokens
        per_step = plan.tokens_per_step // most
        what = f"a prompt of up to {asks.longest} tokens with {group_size} answers of up to {new_tokens}"
        if not per_step:
            raise UserError(
                f"tokens_per_step {plan.tokens_per_step} is too little for {what}: that can be {most} tokens. Raise it, or "
                "lower max_prompt_length, max_new_tokens or group_size."
            )
        setup.say(f"a step takes {per_step} prompts: {what}, is at most {most} tokens")
    return RolloutPlan(
        setup.option(RolloutOptions).rollout_prompts or per_step,
        per_step,
        passes,
        plan.epochs,
        plan.max_steps,
        plan.seed,
    )
