"""The reference of DPO and KTO: what the trained policy is compared with, and where its logprobs come from.

It is the adapter as it was at the start, a frozen copy, or another model. Its logprobs are computed in the feed, or
once for the whole data set before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espalier.config.options import Options, option
from espalier.data.steps.feed import Rows
from espalier.data.store.columns import Column, ColumnWriter
from espalier.data.store.stack import Forest
from espalier.disk.temporary import temporary_folder
from espalier.models.adapters.adapter import StepZero
from espalier.models.forward import TreeModel, Want
from espalier.models.reference import frozen_copy
from espalier.stages.setup import Setup
from espalier.trees import Batch, Tree


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(Options):
    """What DPO and KTO compare a policy with."""

    pref_beta: float = option(0.1, "How strongly the policy is held to the reference.", above=0)
    precompute_ref_logprobs: bool = option(
        False,
        "Compute the reference once for all pairs before the first step, and free it.",
        same_result=True,
    )
    ref_model: str | None = option(
        None, "Another model as the reference; null: the policy as it starts.", names="model"
    )


def asks_policy(options: ReferenceOptions) -> bool:
    """Whether the reference is read from the policy's own weights while it is trained: not from another model, and not
    before the first step."""
    return options.ref_model is None and not options.precompute_ref_logprobs


class Reference:
    """Adds the reference's logprobs to a batch.

    Args:
        policy: what is trained.
        frozen: the model that is compared with; None: the policy's adapter as it starts.
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

    def step(self, batches: list[Batch]) -> list[Batch]:
        """The same to all micro-batches of a step."""
        return [self(batch) for batch in batches]


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


def reference_of(setup: Setup, policy: TreeModel, name: str | None) -> Reference:
    """Another model where one is named, else the policy as it starts."""
    if name is None:
        return Reference(policy, frozen_copy(policy), setup.autocast)
    return Reference(policy, setup.load_frozen(name).eval().requires_grad_(False), setup.autocast)
