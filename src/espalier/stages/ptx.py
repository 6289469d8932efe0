"""The text of a data set beside the answers of a rollout, so that a policy does not forget it.

PPO-ptx of Ouyang et al. 2022, section 3.5: the likelihood of documents is one more term of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from espalier.config.options import Options, RunOptions, option
from espalier.stages.setup import Setup
from espalier.trees import Tree


@dataclass(frozen=True, kw_only=True)
class PtxOptions(Options):
    """A data set beside the answers of PPO."""

    ptx_coef: float = option(0.0, "Weight of the likelihood of ptx_dataset's text.", min=0)
    ptx_dataset: str | list[str | dict[str, Any]] | None = option(
        None, "Chats or text for the ptx loss.", names="data"
    )
    ptx_mix: Literal["added", "convex"] = option(
        "added", "policy + ptx_coef * ptx (added), or (1 - ptx_coef) * policy + ptx_coef * ptx (convex)."
    )
    ptx_batch_size: int | None = option(
        None, "Records of ptx_dataset in a step, over all processes; null: as many as prompts.", min=1
    )

    def problems(self) -> list[str]:
        if bool(self.ptx_coef) != (self.ptx_dataset is not None):
            return ["`ptx_coef` and `ptx_dataset` need each other: give both or none."]
        if self.ptx_mix == "convex" and not 0 < self.ptx_coef < 1:
            return ["`ptx_mix: convex` needs `ptx_coef` between 0 and 1, for example 0.1."]
        if self.ptx_batch_size is not None and self.ptx_dataset is None:
            return ["`ptx_batch_size` is about `ptx_dataset`, and none is given. Remove it."]
        return []


def with_documents(answers: list[Tree], documents: list[Tree], coefficient: float) -> list[Tree]:
    """Answers and documents in one step; the documents' tokens weigh `coefficient` times the answers'."""
    tokens = sum(tree.n_trained for tree in answers)
    scale = coefficient * tokens / max(1, sum(tree.n_trained for tree in documents))
    names = answers[0].extras
    mixed = list(answers)
    for tree in documents:
        width = tree.n_trained
        blank = {n: torch.zeros(1) if x.dim() == 1 else torch.zeros(1, width) for n, x in names.items()}
        mixed.append(tree.with_extras(**{**blank, "ptx": torch.tensor([scale])}))
    return mixed


class Documents:
    """The trees of `ptx_dataset` in shuffled passes, some for each step.

    Args:
        trees: each of one branch.
        coefficient: what their tokens weigh against those of answers.
        seed: of their order.
        each: how many a step; None: as many as trees of answers.
    """

    def __init__(self, trees: Sequence[Tree], coefficient: float, seed: int, each: int | None = None) -> None:
        self._trees, self._coefficient, self._seed, self._each = trees, coefficient, seed, each

    def chosen(self, start: int, count: int) -> list[Tree]:
        """The trees `start` ... `start` + `count` - 1 of the endless sequence."""
        places = [divmod(at, len(self._trees)) for at in range(start, start + count)]
        orders = {
            turn: np.random.default_rng([self._seed, 11, turn]).permutation(len(self._trees))
            for turn in {turn for turn, _ in places}
        }
        return [self._trees[int(orders[turn][place])] for turn, place in places]

    def mixed(self, answers: list[Tree], step: int) -> list[Tree]:
        """The answers of a step with its documents; without documents the answers."""
        if not self._trees:
            return answers
        count = self._each or len(answers)
        return with_documents(answers, self.chosen(step * count, count), self._coefficient)


def load_documents(setup: Setup) -> Documents:
    """The run's `ptx_dataset`, encoded; empty where there is none."""
    options = setup.option(PtxOptions)
    trees: Sequence[Tree] = []
    if options.ptx_dataset is not None:
        trees = setup.trees(setup.load_file(options.ptx_dataset, "chat"), "ptx")
    return Documents(trees, options.ptx_coef, setup.option(RunOptions).seed, options.ptx_batch_size)
