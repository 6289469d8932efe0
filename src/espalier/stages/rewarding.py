"""The rewards of a run: its options, the list that they make, and the trained models of the list.

`reward_model: X` and `reward_function: Y` are short forms of a list with one entry; there is one road behind them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from espalier.config.options import Options, RunOptions, option
from espalier.data.encode.scored import ScoreAt, closing, score_place
from espalier.errors import UserError
from espalier.models.forward import TreeModel, Want
from espalier.rollout.experience import AnswerGroup, as_judged, measure
from espalier.rollout.rewards.rules import RULES
from espalier.rollout.rewards.scorer import TIMEOUT, Means
from espalier.rollout.rewards.table import KINDS, ModelSettings, RewardSpec, read_specs
from espalier.rollout.scored import OnFailure, RewardList
from espalier.stages.parts import Live
from espalier.stages.setup import Setup
from espalier.trees import Batch, Tree


@dataclass(frozen=True, kw_only=True)
class RewardListOptions(Options):
    """What answers are rewarded for."""

    rewards: list[str | dict[str, Any]] | None = option(
        None,
        f"A list of {{type, name, weight, …}}, whose weighted sum is the reward; types: {', '.join(KINDS)}, or "
        "FILE.py:FUNCTION.",
        names="rewards",
    )
    reward_model: str | None = option(None, "A reward model's folder, or run:NAME.", names="model")
    reward_score_at: ScoreAt | None = option(
        None,
        "Where reward_model reads an answer: at its end token (answer) or behind the whole turn; null: as it says itself.",
    )
    reward_function: str | None = option(
        None, f"A rule: {', '.join(RULES)}, or FILE.py:FUNCTION of your own.", names="function"
    )
    reward_timeout: float = option(
        TIMEOUT,
        "Seconds that a function of your own may take for an answer; then the reward has failed.",
        above=0,
        same_result=True,
    )
    on_reward_failure: OnFailure = option(
        "stop",
        "An answer whose reward fails stops the run, or is left out of the loss and counted (skip).",
        same_result=True,
    )

    def problems(self) -> list[str]:
        given = [self.rewards is not None, self.reward_model is not None, self.reward_function is not None]
        if sum(given) != 1:
            return [
                "Give `reward_model` (a trained one) or `reward_function` (a rule), and not both; several rewards are a "
                "list, `rewards`, which stands alone."
            ]
        if self.reward_score_at is not None and self.reward_model is None:
            return ["`reward_score_at` is about a `reward_model`, and none is given. Remove it."]
        return read_specs(self.entries, self._key)[1]

    @property
    def _key(self) -> str:
        return (
            "rewards"
            if self.rewards is not None
            else "reward_model"
            if self.reward_model
            else "reward_function"
        )

    @property
    def entries(self) -> list[Any]:
        """The list of rewards as a user writes one, also where a short form is given."""
        if self.rewards is not None:
            return self.rewards
        if self.reward_model is not None:
            return [{"type": "model", "path": self.reward_model, "score_at": self.reward_score_at}]
        return [self.reward_function]

    @property
    def specs(self) -> list[RewardSpec]:
        """The list as values."""
        return read_specs(self.entries, self._key)[0]

    @property
    def critic_start(self) -> str | None:
        """The reward model that a critic can start from: the first that reads the policy's own ids."""
        models = (spec.settings for spec in self.specs if isinstance(spec.settings, ModelSettings))
        return next((model.path for model in models if not model.retokenize), None)


def reward_list(setup: Setup, options: RewardListOptions) -> RewardList:
    """The run's rewards, looked at before a model is loaded.

    Raises:
        UserError: a file, a function or a library that one of them needs is not there.
    """
    run = setup.option(RunOptions)
    folder = Path(run.output_dir) / (run.name or run.stage)
    means = Means(options.reward_timeout, folder, setup.world, setup.say)
    return RewardList(options.specs, options.on_reward_failure, means)


class RewardModel:
    """A trained model of the run's tokenizer that reads the trees of answers.

    Args:
        setup: of the run.
        spec: of a model.
    """

    def __init__(self, setup: Setup, spec: RewardSpec) -> None:
        self._setup, self._settings = setup, cast(ModelSettings, spec.settings)
        self.module: nn.Module = self._loaded()
        self._closing = closing(setup.tokenizer, setup.template)
        self._place = self._place_of_scores()

    def _loaded(self) -> TreeModel:
        self._model = self._setup.load_frozen(self._settings.path, scalar_head=True)
        self._model.eval().requires_grad_(False)
        return self._model

    def scores(self, live: Live, answered: Sequence[AnswerGroup]) -> list[Tensor]:
        """Of each group (B,), the same on every rank.

        Raises:
            UserError: a score is no number.
        """
        shown = [as_judged(a, self._closing, self._place) for a in answered]
        judged = measure(shown, self._setup.rows(self._model), lambda batch: self._judged(live, batch))
        _check_scores(judged, self._settings.path)
        return [tree.extras["scores"] for tree in judged]

    def _place_of_scores(self) -> ScoreAt:
        """Where the model is read; says so where nobody has said it and it makes a difference."""
        said = self._settings.score_at or self._model.score_at
        if said is None and self._closing.tail:
            self._setup.say(
                f"{self._settings.path}: does not say at which token it scores an answer, so it is read behind the "
                "whole turn, as model cards do; reward_score_at: answer reads it at the end token (the exam reward:FILE "
                "shows the accuracy of both)"
            )
        return score_place(said)

    @torch.no_grad()
    def _judged(self, live: Live, batch: Batch) -> dict[str, Tensor]:
        with live.accelerator.autocast():
            scores = self._model(batch, Want(logprobs=False, scores=True)).scores
        assert scores is not None
        return {"scores": scores.float()}


def _check_scores(trees: list[Tree], name: str) -> None:
    """A reward model that says nan would spoil the advantages of a whole rollout."""
    for tree in trees:
        for score in tree.extras["scores"].tolist():
            if not math.isfinite(score):
                raise UserError(
                    f"the reward model {name} gives {score} for an answer to the prompt {tree.source}: its weights are "
                    "broken. Look at reward_model; the last checkpoint is kept."
                )
