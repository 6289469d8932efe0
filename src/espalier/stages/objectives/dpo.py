"""Direct preference optimisation and its relatives: a policy from pairs, without a reward model.

A pair is one tree: the prompt is computed once for both answers, by the policy and by the reference (see
`stages.references`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from espalier.config.option_set import OptionSet
from espalier.config.options import Options, option
from espalier.data.preflight.findings import HELD_OUT
from espalier.engine.track import Numbers
from espalier.errors import UserError
from espalier.maths.losses import nll
from espalier.maths.preferences import PREFERENCES, PreferenceLoss
from espalier.maths.reduce import masked_mean, masked_sum
from espalier.models.forward import Outputs, Want
from espalier.stages.parts import HeldOut, Parts, Units, validator
from espalier.stages.references import ReferenceOptions, asks_policy, precomputed, reference_of
from espalier.stages.setup import Setup
from espalier.stages.stage import Stage
from espalier.trees import Batch

if TYPE_CHECKING:
    LossName = str
else:  # what help, documents and the check of a file show are the rows of the table
    LossName = Literal[tuple(PREFERENCES)]


TAKEN = {"label_smoothing": "label_smoothing", "gamma": "simpo_gamma", "tau": "discopop_tau"}
"""What only some losses take -> the option that sets it."""


@dataclass(frozen=True, kw_only=True)
class DPOOptions(Options):
    """The DPO stage."""

    pref_loss: LossName = option("sigmoid", "The loss of a pair.")
    pref_ftx: float = option(
        0.0,
        "Weight of the chosen answer's nll (a mean over its tokens), added to the loss of the pair.",
        min=0,
    )
    label_smoothing: float = option(
        0.0, "The chance that a preference is the wrong way round.", min=0, below=0.5
    )
    simpo_gamma: float = option(0.5, "The margin that SimPO wants of a pair.", min=0)
    discopop_tau: float = option(
        0.05, "How steeply DiscoPOP goes from one of its losses to the other.", above=0
    )

    def problems(self) -> list[str]:
        problems, loss = [], PREFERENCES[self.pref_loss]
        for name, key in TAKEN.items():
            if getattr(self, key) != type(self).__dataclass_fields__[key].default and name not in loss.takes:
                takers = " or ".join(kind for kind, row in PREFERENCES.items() if name in row.takes)
                problems.append(
                    f"`{key}` belongs to pref_loss: {takers}, not to {self.pref_loss}. Remove one."
                )
        if self.pref_loss == "exo_pair" and not self.label_smoothing:
            problems.append("pref_loss: exo_pair needs `label_smoothing` above 0; its paper takes 0.001.")
        return problems

    def settings(self, beta: float) -> dict[str, float]:
        """What the loss takes by name."""
        taken = PREFERENCES[self.pref_loss].takes
        return {"beta": beta, **{name: getattr(self, TAKEN[name]) for name in taken}}


class Preferences:
    """The policy prefers the chosen answer more than the reference does.

    Args:
        kind: the loss of a pair.
        settings: ``beta`` > 0, and what else the loss takes.
        ftx: weight of the chosen answer's nll, beside that which belongs to the loss.
        fresh: whether the policy starts as the reference, so that the first loss is known.
    """

    want = Want()

    def __init__(self, kind: PreferenceLoss, settings: dict[str, float], ftx: float, *, fresh: bool) -> None:
        self._kind, self._beta, self._nll = kind, settings["beta"], kind.nll + ftx
        self._loss = partial(kind.function, **settings)
        self._at_start = kind.at_start(**settings) if fresh else None

    def count(self, batch: Batch) -> float:
        return float(batch.n_trees)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        assert outputs.logprobs is not None
        policy, ref = self._by_pair(outputs, batch)
        each = self._loss(policy[:, 0], policy[:, 1], ref[:, 0], ref[:, 1])
        rewards = self._beta * (policy - ref).detach()
        margin = rewards[:, 0] - rewards[:, 1]
        likelihood = nll(masked_mean(outputs.logprobs, batch.mask, 1).view(-1, 2)[:, 0])
        pairs, total = len(each), (each + self._nll * likelihood).sum()
        return total, {
            "loss": (total.detach(), pairs),
            "accuracy": (_won(margin).sum(), pairs),
            "margin": (margin.sum(), pairs),
            "chosen_reward": (rewards[:, 0].sum(), pairs),
            "rejected_reward": (rewards[:, 1].sum(), pairs),
            "chosen_nll": (likelihood.detach().sum(), pairs),
        }

    def judge(self, outputs: Outputs, batch: Batch) -> Units:
        policy, ref = self._by_pair(outputs, batch)
        difference = policy - ref
        won = _won(difference[:, 0] - difference[:, 1])
        return won, torch.ones_like(won)

    def check(self, first: dict[str, float]) -> None:
        expected = self._at_start
        if expected is None:
            return
        loss = first["loss"] - self._nll * first["chosen_nll"]
        if abs(loss - expected) > 1e-2 * max(1.0, expected):
            raise ValueError(
                f"the first step's DPO loss is {loss:.4f} and must be {expected:.4f}: policy and "
                "reference are not the same model at the start. Check dropout, adapters and precision."
            )

    def _by_pair(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """(P, 2) logprobs of whole answers under policy and reference, reduced as the loss wants them."""
        assert outputs.logprobs is not None
        reduce = masked_mean if self._kind.reduction == "mean" else masked_sum
        policy = reduce(outputs.logprobs, batch.mask, 1).view(-1, 2)
        if not self._kind.reference:
            return policy, torch.zeros_like(policy)
        return policy, reduce(batch.extras["ref_logprobs"], batch.mask, 1).view(-1, 2)


def _won(margin: Tensor) -> Tensor:
    """1 where the chosen answer gained more, 0 where less, a half where nothing has changed yet."""
    return (margin > 0).float() + 0.5 * (margin == 0)


def build(setup: Setup) -> Parts:
    options, compared = setup.option(DPOOptions), setup.option(ReferenceOptions)
    loss = PREFERENCES[options.pref_loss]
    records, held_out = setup.records("preference")
    # How good people found the answers is no matter here, and some sets of a mixture may say it.
    train = setup.trees(records).mapped(lambda tree: replace(tree, extras={}))
    judged = setup.trees(held_out, HELD_OUT).mapped(lambda tree: replace(tree, extras={}))
    setup.only_pairs(records)
    policy = setup.load_policy()
    add = reference_of(setup, policy, compared.ref_model) if loss.reference else None
    if add is not None and compared.precompute_ref_logprobs:
        train, judged = (precomputed(trees, add, setup.rows(policy)) for trees in (train, judged))
        add.frozen = None
    settings = options.settings(compared.pref_beta)
    objective = Preferences(loss, settings, options.pref_ftx, fresh=compared.ref_model is None)
    batches = setup.rows(policy).micro_batches(judged) if judged else []
    return Parts(
        trained=policy,
        main=policy,
        objective=objective,
        feed=lambda live: setup.dataset_feed(policy, train, annotate=add and add.step),
        validate=validator(objective, [add(batch) for batch in batches] if add else batches),
        held_out=HeldOut("accuracy", "higher"),
        sample_prompts=setup.sample_prompts(held_out or records),
    )


def _check(options: OptionSet) -> None:
    kind, compared = options[DPOOptions].pref_loss, options[ReferenceOptions]
    if not PREFERENCES[kind].reference and (compared.ref_model or compared.precompute_ref_logprobs):
        key = "ref_model" if compared.ref_model else "precompute_ref_logprobs"
        raise UserError(f"`{key}` is of no use: pref_loss: {kind} has no reference. Remove it.")


STAGE = Stage(
    "preference",
    build,
    (ReferenceOptions, DPOOptions),
    reference=lambda options: (
        PREFERENCES[options[DPOOptions].pref_loss].reference and asks_policy(options[ReferenceOptions])
    ),
    check=_check,
)
