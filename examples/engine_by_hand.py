"""RLHF in the shape that DeepSpeed-Chat gave it: an engine holds the models, a trainer has two methods.

`generate_experience` samples, scores and measures; `train_rlhf` takes one step of actor and critic on a part of it. Below
both are the pieces of `espalier.rl`, so loss, reward and weights are those of `stage: ppo` with the same options.

python examples/engine_by_hand.py OPTIONS.yaml   (the options of `stage: ppo`, such as examples/ppo_by_hand.py has them)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from espalier import rl
from espalier.trees import Tree


class RLHFEngine:
    """Actor, critic, reference and reward, opened by the options of `stage: ppo`."""

    def __init__(self, **options: Any) -> None:
        self.training = rl.begin("ppo", **options)
        self.tokenizer = self.training.tokenizer
        self.actor, self.critic = self.training.policy, self.training.critic


class PPOTrainer:
    """Experience from prompts, and steps on experience.

    Args:
        engine: the models.
    """

    def __init__(self, engine: RLHFEngine) -> None:
        self.engine, self.training = engine, engine.training

    def generate_experience(self, prompts: Sequence[int], step: int) -> list[Tree]:
        """Answers to these prompts (places in the data set), with all that the losses read.

        A tree is a prompt with its answers. Its extras: scores (B,); old_logprobs, ref_logprobs, old_values, advantages,
        returns (B, A), for B answers of up to A tokens.
        """
        answers = rl.sample(self.training, prompts, step)
        experience = rl.measure(self.training, rl.score(self.training, answers))
        return rl.advantages(self.training, experience)

    def train_rlhf(self, inputs: list[Tree]) -> tuple[float, float, dict[str, float]]:
        """One step; the losses of actor and critic (means over tokens), and every number of the step."""
        numbers = rl.update(self.training, inputs)
        return numbers["policy_loss"], numbers["value_loss"], numbers


class MiniDataset:
    """The experience of a rollout as the minibatches of all passes.

    Args:
        training: says how large they are, and in which order they come.
    """

    def __init__(self, training: rl.Training) -> None:
        self.training = training

    def add(self, experience: list[Tree], step: int) -> Iterator[list[Tree]]:
        return rl.minibatches(self.training, experience, step)


def train(trainer: PPOTrainer) -> Iterator[dict[str, float]]:
    """The loop of the predecessors' main(): a rollout, then all passes over it; the numbers of each step."""
    dataset = MiniDataset(trainer.training)
    for step, prompts in rl.rollouts(trainer.training):
        experience = trainer.generate_experience(prompts, step)
        for inputs in dataset.add(experience, step):
            yield trainer.train_rlhf(inputs)[2]


def main() -> None:
    options = yaml.safe_load(Path(sys.argv[1]).read_text("utf-8"))
    options.pop("stage", None)
    trainer = PPOTrainer(RLHFEngine(**options))
    for numbers in train(trainer):
        print({name: round(value, 4) for name, value in numbers.items()}, flush=True)


if __name__ == "__main__":
    main()
