"""PPO's critic: a model of its own beside the policy, and how fast it learns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espalier.config.options import Options, option
from espalier.config.train_options import step_count_problems
from espalier.models.forward import Outputs, TreeModel, Want
from espalier.stages.parts import Pace
from espalier.trees import Batch


@dataclass(frozen=True, kw_only=True)
class CriticOptions(Options):
    """The critic of PPO."""

    vf_coef: float = option(0.1, "Weight of the value loss.", min=0)
    clip_range_value: float = option(0.2, "How far a value may go from the old one and still pay.", above=0)
    critic_learning_rate: float | None = option(
        None, "The critic's highest learning rate; null: learning_rate.", min=0
    )
    critic_warmup_steps: int | float | None = option(
        None,
        "Steps in which the critic's rate rises (below 1: a share of all); null: as the policy's.",
        min=0,
    )
    critic_max_grad_norm: float | None = option(
        None,
        "Clip the norm of the critic's gradient to this, apart from the policy's; null: max_grad_norm for each.",
        min=0,
    )
    critic_first_steps: int | float = option(
        0, "So many steps at the start (below 1: a share of all) train the critic alone.", min=0
    )

    def problems(self) -> list[str]:
        return step_count_problems(self, "critic_warmup_steps", "critic_first_steps")

    @property
    def paces(self) -> dict[str, Pace]:
        """How fast policy and critic learn, by their names in `PolicyAndCritic`."""
        return {
            "policy": Pace(waits=self.critic_first_steps),
            "critic": Pace(self.critic_learning_rate, self.critic_warmup_steps, self.critic_max_grad_norm),
        }


def foresee(critic: TreeModel, weight: float, mean: float, deviation: float) -> None:
    """Let a critic that starts as a reward model say what will be paid for a score: (weight * score - mean) / deviation.

    Its first values would be as far from the rewards as the two scales are, and the value loss would be all there is.
    """
    assert critic.scalar_head is not None
    critic.scalar_head.rescale(mean / weight, deviation / weight)


class PolicyAndCritic(nn.Module):
    """Two models behind one forward, so that one wrapper, one optimiser and one backward serve both."""

    def __init__(self, policy: TreeModel, critic: TreeModel) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def forward(self, batch: Batch, want: Want) -> Outputs:
        wanted = Want(want.logprobs, want.entropy, temperature=_temperature(batch, want))
        outputs = self.policy(self.policy.fitting(batch), wanted)
        if not want.values:
            return Outputs(outputs.logprobs, outputs.entropy)
        values = self.critic(self.critic.fitting(batch), Want(logprobs=False, values=True)).values
        return Outputs(outputs.logprobs, outputs.entropy, values)


def _temperature(batch: Batch, want: Want) -> float | Tensor:
    """Answers are trained at the temperature that they were sampled with, the text of a data set at 1."""
    ptx = batch.extras.get("ptx")
    if ptx is None or want.temperature == 1.0 or not bool(ptx.any()):
        return want.temperature
    return torch.where(ptx > 0, 1.0, want.temperature)
