"""Several reward models as one: what they agree on counts, and what only one of them likes counts less.

A policy finds what a single reward model gets wrong; models that were trained with other seeds or data get other things
wrong (Coste et al. 2023, "Reward model ensembles help mitigate overoptimization"; Eisenstein et al. 2023).

K models, B answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from espalier.errors import UserError

Kind = Literal["sum", "mean", "min", "uncertainty"]

SPREAD = "ensemble_spread"
"""The name of what is logged of the models' disagreement."""


def combined(scores: Tensor, kind: Kind, coefficient: float) -> Tensor:
    """One number for each answer.

    Args:
        scores: (K, B) of the models, on one scale.
        kind: the mean; the smallest, worst-case optimisation (Coste et al. 2023, eq. 5); or the mean less `coefficient`
            times the variance, uncertainty-weighted optimisation (eq. 6). The variance divides by K.
        coefficient: at least 0.

    Returns:
        (B,), nan where one of the scores is.

    >>> scores = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    >>> combined(scores, "min", 1.0).tolist(), combined(scores, "uncertainty", 0.5).tolist()
    ([1.0, 2.0], [1.5, 2.0])
    """
    if kind == "min":
        return scores.amin(0)
    mean = scores.mean(0)
    return mean - coefficient * scores.var(0, correction=0) if kind == "uncertainty" else mean


@dataclass
class Ensemble:
    """How the models among a run's rewards become one.

    Attributes:
        kind: sum is no ensemble: each model is a reward by itself.
        coefficient: of uncertainty.
        moments: by a model's name, the mean and the standard deviation of its scores; each model's scores are counted from
            there, for models of unlike scales have no smallest one.
    """

    kind: Kind = "sum"
    coefficient: float = 1.0
    moments: dict[str, tuple[float, float]] = field(default_factory=dict)

    def learn(self, moments: Mapping[str, tuple[float, float] | None]) -> None:
        """Take the moments that each model was saved with.

        Raises:
            UserError: one has none.
        """
        if self.kind == "sum":
            return
        for name, pair in moments.items():
            if pair is None:
                raise UserError(
                    f"reward_ensemble: {self.kind} compares scores, and {name} was saved without their mean and standard "
                    "deviation, which stage: reward measures on held-out answers (val_size or eval_dataset). Train it so, "
                    "or leave reward_ensemble: sum."
                )
            self.moments[name] = pair

    def stacked(self, components: Mapping[str, Tensor]) -> Tensor:
        """(K, B) the models' scores of a group on one scale; K is 0 without an ensemble."""
        if not self.moments:
            return torch.empty(0, 0)
        return torch.stack([(components[name] - mean) / std for name, (mean, std) in self.moments.items()])

    def total(self, components: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """(B,) the weighted sum of a group's components, where the models of an ensemble count as one.

        Args:
            components: name -> (B,).
            weights: of each; an ensemble's is the mean of its models'.
        """
        parts = [weights[name] * components[name] for name in weights if name not in self.moments]
        if self.moments:
            weight = sum(weights[name] for name in self.moments) / len(self.moments)
            parts.append(weight * combined(self.stacked(components), self.kind, self.coefficient))
        return torch.stack(parts).sum(0)

    def extras(self, components: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(B,) the models' standard deviation, where there is an ensemble."""
        return {SPREAD: self.stacked(components).std(0, correction=0)} if self.moments else {}
