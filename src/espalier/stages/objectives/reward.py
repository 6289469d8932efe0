"""The reward model: a number for an answer, from which of two (or K) answers people preferred.

All answers to a prompt stand in one tree and share all that agrees; the reward of each is read at its last
real token, the end token included. All ordered pairs of a tree are learned at once (Ouyang et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from espalier.config.options import Options, option
from espalier.data.preflight.findings import HELD_OUT
from espalier.engine.track import Numbers
from espalier.maths.losses import pairwise_log_exp, pairwise_log_sig, ranking_pairs
from espalier.models.forward import Outputs, Want
from espalier.stages.parts import HeldOut, Parts, Units, validator
from espalier.stages.setup import Setup
from espalier.stages.stage import Stage
from espalier.trees import Batch, Tree

LOSSES = {"log_sig": pairwise_log_sig, "log_exp": pairwise_log_exp}


@dataclass(frozen=True, kw_only=True)
class RewardOptions(Options):
    """The reward stage."""

    reward_loss: Literal["log_sig", "log_exp"] = option(
        "log_sig", "-log sigmoid(margin) or log(1 + exp(-margin)): the same number, in two stable forms."
    )


class PairwiseReward:
    """Every better answer of a tree scores above every worse one.

    Args:
        loss: elementwise, of (P,) better and worse scores.
        fresh: whether the head is new, so that the first margin must be near 0.
    """

    want = Want(logprobs=False, scores=True)

    def __init__(self, loss: str, *, fresh: bool) -> None:
        self._loss, self._fresh = LOSSES[loss], fresh

    def count(self, batch: Batch) -> float:
        return float(len(_pairs(batch)[0]))

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        assert outputs.scores is not None
        better, worse = _pairs(batch)
        chosen, rejected = outputs.scores[better], outputs.scores[worse]
        total = self._loss(chosen, rejected).sum()
        pairs, margin = len(better), (chosen - rejected).detach()
        return total, {
            "loss": (total.detach(), pairs),
            "accuracy": ((margin > 0).sum(), pairs),
            "margin": (margin.sum(), pairs),
            "chosen_score": (chosen.detach().sum(), pairs),
            "rejected_score": (rejected.detach().sum(), pairs),
        }

    def judge(self, outputs: Outputs, batch: Batch) -> Units:
        """Right pairs and pairs of each tree: the pairs of one ranking are not independent."""
        assert outputs.scores is not None
        better, worse = _pairs(batch)
        right = (outputs.scores[better] > outputs.scores[worse]).float()
        tree = batch.tree_id[better]
        zeros = torch.zeros(batch.n_trees, device=right.device)
        counted = zeros.index_add(0, tree, torch.ones_like(right))
        has_pairs = counted > 0
        return zeros.index_add(0, tree, right)[has_pairs], counted[has_pairs]

    def check(self, first: dict[str, float]) -> None:
        if self._fresh and abs(first["margin"]) > 1.0:
            raise ValueError(
                f"the first step's margin is {first['margin']:.2f}; a new head scores all answers near 0. "
                "The model's hidden states may be broken: check model_name_or_path."
            )


def _pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    return ranking_pairs(batch.extras["preference"], batch.tree_id)


def with_preference(tree: Tree) -> Tree:
    """A pair or a ranking with what people said as ``extras["preference"]`` (B,)."""
    preference = tree.extras.get("scores", torch.tensor([1.0, 0.0]))
    return replace(tree, extras={"preference": preference})


def build(setup: Setup) -> Parts:
    records, held_out = setup.records("preference")
    train = setup.trees(records, answers_trained=False).mapped(with_preference)
    judged = setup.trees(held_out, HELD_OUT, answers_trained=False).mapped(with_preference)
    model = setup.load_policy(scalar_head=True).without_lm_head()
    objective = PairwiseReward(setup.option(RewardOptions).reward_loss, fresh=not setup.has_scalar_head)
    return Parts(
        trained=model,
        main=model,
        objective=objective,
        feed=lambda live: setup.dataset_feed(model, train),
        validate=validator(objective, setup.judged(model, judged)),
        held_out=HeldOut("accuracy", "higher"),
    )


STAGE = Stage("preference", build, (RewardOptions,), answers_trained=False)
