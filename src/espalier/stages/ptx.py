"""The text of a data set beside the answers of a rollout, so that a policy does not forget it.

PPO-ptx of Ouyang et al. 2022, section 3.5: the likelihood of documents is one more term of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from espalier.trees import Tree


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
    """

    def __init__(self, trees: Sequence[Tree], coefficient: float, seed: int) -> None:
        self._trees, self._coefficient, self._seed = trees, coefficient, seed

    def chosen(self, start: int, count: int) -> list[Tree]:
        """The trees `start` ... `start` + `count` - 1 of the endless sequence."""
        places = [divmod(at, len(self._trees)) for at in range(start, start + count)]
        orders = {
            turn: np.random.default_rng([self._seed, 11, turn]).permutation(len(self._trees))
            for turn in {turn for turn, _ in places}
        }
        return [self._trees[int(orders[turn][place])] for turn, place in places]

    def mixed(self, answers: list[Tree], start: int) -> list[Tree]:
        """Answers with as many documents, from `start` of their sequence on; without documents the answers."""
        if not self._trees:
            return answers
        return with_documents(answers, self.chosen(start, len(answers)), self._coefficient)
