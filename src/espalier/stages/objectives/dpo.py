"""Direct preference optimisation and its relatives: a policy from pairs, without a reward model.

A pair is one tree: the prompt is computed once for both answers, by the policy and by the reference. The
reference is the adapter as it was at the start, or a frozen copy; its logprobs are computed in the feed, or once for
the whole data set before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from espalier.config.options import Options, option
from espalier.data.preflight.findings import HELD_OUT
from espalier.data.steps.feed import Rows
from espalier.data.store.columns import Column, ColumnWriter
from espalier.data.store.stack import Forest
from espalier.disk.temporary import temporary_folder
from espalier.engine.track import Numbers
from espalier.maths.losses import nll
from espalier.maths.preferences import PREFERENCES, PreferenceLoss
from espalier.maths.reduce import masked_mean, masked_sum
from espalier.models.adapters.adapter import StepZero
from espalier.models.forward import Outputs, TreeModel, Want
from espalier.models.reference import frozen_copy
from espalier.stages.parts import HeldOut, Parts, Units, validator
from espalier.stages.setup import Setup
from espalier.stages.stage import Stage
from espalier.trees import Batch, Tree

if TYPE_CHECKING:
    LossName = str
else:  # what help, documents and the check of a file show are the rows of the table
    LossName = Literal[tuple(PREFERENCES)]


TAKEN = {"label_smoothing": "label_smoothing", "gamma": "simpo_gamma", "tau": "discopop_tau"}
"""What only some losses take -> the option that sets it."""


@dataclass(frozen=True, kw_only=True)
class DPOOptions(Options):
    """The DPO stage."""

    pref_beta: float = option(0.1, "How strongly the policy is held to the reference.", above=0)
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
    precompute_ref_logprobs: bool = option(
        False,
        "Compute the reference once for all pairs before the first step, and free it.",
        same_result=True,
    )
    ref_model: str | None = option(
        None, "Another model as the reference; null: the policy as it starts.", names="model"
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
        if not loss.reference and (self.ref_model or self.precompute_ref_logprobs):
            key = "ref_model" if self.ref_model else "precompute_ref_logprobs"
            problems.append(f"`{key}` is of no use: pref_loss: {self.pref_loss} has no reference. Remove it.")
        return problems

    @property
    def settings(self) -> dict[str, float]:
        """What the loss takes by name."""
        taken = PREFERENCES[self.pref_loss].takes
        return {"beta": self.pref_beta, **{name: getattr(self, TAKEN[name]) for name in taken}}


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


class Reference:
    """Adds the reference's logprobs to a batch; see the module's text for where they come from.

    Args:
        autocast: the precision in which the policy is trained, so that the two differ by their weights alone.
    """

    def __init__(
        self,
        policy: TreeModel,
        frozen: TreeModel | None,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._policy, self.frozen, self._autocast = policy, frozen, autocast
        self._start = StepZero(policy.lm) if frozen is None else None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        if "ref_logprobs" in batch.extras:
            return batch
        if self._start is None:
            assert self.frozen is not None, "everything has been computed before the first step"
            with self._autocast():
                logprobs = self.frozen(self.frozen.fitting(batch), Want()).logprobs
        else:
            with self._autocast(), self._start():
                logprobs = self._policy(batch, Want()).logprobs
        assert logprobs is not None
        return batch.with_extras(ref_logprobs=logprobs.detach())


def precomputed(trees: Forest, add: Reference, rows: Rows) -> Forest:
    """The trees with ``extras["ref_logprobs"]``, computed once and kept on disk; every rank computes all of them."""
    alone = replace(rows, rank=0, world=1)
    folder = temporary_folder()
    starts = np.zeros(len(trees) + 1, np.int64)
    with ColumnWriter(Path(folder.name), {"logprobs": "<f4"}) as writer:
        for at, tree in enumerate(trees):
            (batch,) = alone.micro_batches([tree])
            writer.add("logprobs", add(batch).extras["ref_logprobs"].cpu().float().flatten().numpy())
            starts[at + 1] = writer.lengths["logprobs"]
    kept = Column(Path(folder.name), "logprobs", "<f4", int(starts[-1]))

    def with_logprobs(at: int, tree: Tree) -> Tree:
        assert folder.name, "the folder lives as long as what reads it"
        logprobs = torch.from_numpy(kept.read(int(starts[at]), int(starts[at + 1]))).view(tree.n_branches, -1)
        return tree.with_extras(ref_logprobs=logprobs)

    return trees.numbered(with_logprobs)


def build(setup: Setup) -> Parts:
    options = setup.option(DPOOptions)
    loss = PREFERENCES[options.pref_loss]
    records, held_out = setup.records("preference")
    train, judged = setup.trees(records), setup.trees(held_out, HELD_OUT)
    setup.only_pairs(records)
    policy = setup.load_policy()
    add = _reference(setup, policy, options.ref_model) if loss.reference else None
    if add is not None and options.precompute_ref_logprobs:
        train, judged = (precomputed(trees, add, setup.rows(policy)) for trees in (train, judged))
        add.frozen = None
    objective = Preferences(loss, options.settings, options.pref_ftx, fresh=options.ref_model is None)
    batches = setup.rows(policy).micro_batches(judged) if judged else []
    return Parts(
        trained=policy,
        main=policy,
        objective=objective,
        feed=lambda live: setup.dataset_feed(policy, train, annotate=add),
        validate=validator(objective, [add(batch) for batch in batches] if add else batches),
        held_out=HeldOut("accuracy", "higher"),
        sample_prompts=setup.sample_prompts(held_out or records),
    )


def _reference(setup: Setup, policy: TreeModel, name: str | None) -> Reference:
    """Another model where one is named, else the policy as it starts."""
    if name is None:
        return Reference(policy, frozen_copy(policy), setup.autocast)
    return Reference(policy, setup.load_frozen(name).eval().requires_grad_(False), setup.autocast)


STAGE = Stage(
    "preference",
    build,
    (DPOOptions,),
    reference=lambda options: PREFERENCES[options[DPOOptions].pref_loss].reference,
)
