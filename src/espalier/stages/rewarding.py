"""The rewards of a run: its options, and the list that they make.

`reward_model: X` and `reward_function: Y` are short forms of a list with one entry; there is one road behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from espalier.config.options import Options, RunOptions, option
from espalier.data.encode.scored import ScoreAt
from espalier.models.classifier import is_encoder
from espalier.rollout.ensemble import Ensemble
from espalier.rollout.rewards.rules import RULES
from espalier.rollout.rewards.scorer import TIMEOUT, Means
from espalier.rollout.rewards.table import KINDS, ModelSettings, RewardSpec, read_specs
from espalier.rollout.scored import OnFailure, RewardList
from espalier.stages.setup import Setup


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
    reward_retokenize: bool = option(
        False, "Let reward_model read prompt and answer as text, by a tokenizer and template of its own."
    )
    reward_function: str | None = option(
        None, f"A rule: {', '.join(RULES)}, or FILE.py:FUNCTION of your own.", names="function"
    )
    reward_ensemble: Literal["sum", "mean", "min", "uncertainty"] = option(
        "sum",
        "The reward models of `rewards` count each by itself (sum), or as one: by their mean, the smallest, or the mean less "
        "reward_uncertainty_coef times their variance; each on the scale of its held-out scores.",
    )
    reward_uncertainty_coef: float = option(1.0, "See reward_ensemble.", min=0)
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
        if self.reward_retokenize and self.reward_model is None:
            return [
                "`reward_retokenize` is about a `reward_model`, and none is given; in `rewards` write retokenize: true "
                "beside its path."
            ]
        specs, problems = read_specs(self.entries, self._key)
        models = sum(isinstance(spec.settings, ModelSettings) for spec in specs)
        if self.reward_ensemble != "sum" and models < 2 and not problems:
            return [
                f"`reward_ensemble: {self.reward_ensemble}` is about several reward models, and there is "
                f"{models}. List them in `rewards`, or remove it."
            ]
        return problems

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
            how = {"score_at": self.reward_score_at, "retokenize": self.reward_retokenize}
            return [{"type": "model", "path": self.reward_model, **how}]
        return [self.reward_function]

    @property
    def specs(self) -> list[RewardSpec]:
        """The list as values."""
        return read_specs(self.entries, self._key)[0]

    @property
    def critic_start(self) -> str | None:
        """The reward model that a critic can start from: the first that reads the policy's own ids."""
        models = (spec.settings for spec in self.specs if isinstance(spec.settings, ModelSettings))
        return next(
            (model.path for model in models if not model.retokenize and not is_encoder(model.path)), None
        )


def reward_list(
    setup: Setup, options: RewardListOptions, specs: Sequence[RewardSpec] | None = None
) -> RewardList:
    """The run's rewards, looked at before a model is loaded; or others (`specs`), whose failures end the run.

    Raises:
        UserError: a file, a function or a library that one of them needs is not there.
    """
    run = setup.option(RunOptions)
    folder = Path(run.output_dir) / (run.name or run.stage)
    means = Means(options.reward_timeout, folder, setup.world, setup.say)
    if specs is not None:
        return RewardList(specs, "stop", means)
    ensemble = Ensemble(options.reward_ensemble, options.reward_uncertainty_coef)
    return RewardList(options.specs, options.on_reward_failure, means, ensemble)
