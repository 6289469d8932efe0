"""Encoded candidates -> sums of logprobs: packs of trees, with what many questions share computed once.

What stands before a run of questions (the solved examples) is their trunk. Questions that fit into one row with
their trunk are a tree there, and rows hold as many trees as fit. A trunk whose questions need several rows is
read once into a cache that all of them go on from. Models that take no trees get a padded row a candidate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from espalier.exam.answers.encode import Encoded
from espalier.exam.answers.rows import lay_out_questions
from espalier.maths.reduce import masked_sum
from espalier.models.adapters.virtual import has_virtual_tokens
from espalier.models.forward import TreeModel, Want
from espalier.models.positions.rope_modules import changes_with_length
from espalier.models.trunk import Trunk
from espalier.trees import Batch, Tree, lay_out_padded, pack

ROW_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of one forward: on a CPU what stays in its caches (measured: benchmarks/exams.py). A single question may be
longer."""

_KEPT = 4  # trunks that are remembered between calls
_SHORTEST_TRUNK = 64  # tokens; a shorter one is not worth a cache

Groups = Sequence[tuple[list[int], dict[int, Encoded]]]
"""(a trunk's tokens, the questions after it by number)."""


@dataclass(frozen=True)
class Scored:
    """What a model says about one question's candidates.

    Attributes:
        scores: sum of the logprobs of the scored tokens of each candidate.
        tokens: how many they are.
        cut: tokens that were left out at the beginning, because the question does not fit into the context.
        lost: tokens that each candidate lost at its end, because it does not fit by itself.
        excess: tokens by which a candidate that is scored whole does not fit; above 0 there are no scores.
        greedy: whether every scored token of a candidate is the likeliest.
    """

    scores: list[float]
    tokens: list[int]
    cut: int = 0
    greedy: list[bool] = field(default_factory=list)
    lost: int = 0
    excess: int = 0


@dataclass
class Cost:
    """Tokens computed, and what an evaluator that shares nothing would compute."""

    computed: int = 0
    unshared: int = 0


class Scorer:
    """Scores encoded questions with one model; remembers the latest trunks from call to call.

    Args:
        model: of the forward; its traits say whether trees are laid out as trees.
        row_tokens: the most tokens of one forward; None: what is fast on the model's device.
    """

    def __init__(self, model: TreeModel, *, row_tokens: int | None = None) -> None:
        self._model = model
        self._padded = model.traits.method == "padded"
        self._device = next(model.parameters()).device
        self._row_tokens = row_tokens or ROW_TOKENS.get(self._device.type, 4096)
        self._trunks: OrderedDict[tuple[int, ...], Trunk] = OrderedDict()

    def score(self, groups: Groups) -> tuple[dict[int, Scored], Cost]:
        """The scores of every question, by its number."""
        scored: dict[int, Scored] = {}
        cost = Cost()
        if self._padded:
            self._padded_rows(groups, scored, cost)
        else:
            self._tree_rows(groups, scored, cost)
        return scored, cost

    def _tree_rows(self, groups: Groups, scored: dict[int, Scored], cost: Cost) -> None:
        small: list[tuple[list[int], dict[int, Encoded]]] = []
        for trunk, questions in groups:
            size = sum(q.n_rows for q in questions.values())
            fits = len(trunk) + size <= self._row_tokens
            if self._cacheable(trunk, questions) and (not fits or tuple(trunk) in self._trunks):
                self._after_trunk(trunk, questions, scored, cost)
            elif fits:
                small.append((trunk, questions))
            else:
                names = list(questions)
                room = max(1, self._row_tokens - len(trunk))
                for row in pack([max(1, questions[i].n_rows) for i in names], room):
                    small.append((trunk, {names[at]: questions[names[at]] for at in row}))
        sizes = [len(trunk) + sum(q.n_rows for q in questions.values()) for trunk, questions in small]
        for row in pack([max(1, n) for n in sizes], self._row_tokens):
            chosen = [small[at] for at in row]
            batch = lay_out_questions([(trunk, list(questions.values())) for trunk, questions in chosen])
            order = [i for _, questions in chosen for i in questions]
            self._run(batch, order, [q for _, questions in chosen for q in questions.values()], scored, cost)

    def _cacheable(self, trunk: list[int], questions: dict[int, Encoded]) -> bool:
        windows = [w for w in self._model.traits.windows.values() if w is not None]
        longest = len(trunk) + max(q.longest for q in questions.values())
        lm = self._model.lm
        takes = self._model.traits.method == "pieces"
        takes = takes and not has_virtual_tokens(lm) and not changes_with_length(lm)
        fits = takes and all(w >= longest for w in windows)
        return fits and len(trunk) >= _SHORTEST_TRUNK and all(q.stem for q in questions.values())

    def _after_trunk(
        self, trunk: list[int], questions: dict[int, Encoded], scored: dict[int, Scored], cost: Cost
    ) -> None:
        cache = self._trunk(trunk, cost)
        names = list(questions)
        for row in pack([max(1, questions[i].n_rows) for i in names], self._row_tokens):
            order = [names[at] for at in row]
            batch = lay_out_questions([([], [questions[i] for i in order])], after=len(trunk))
            self._run(batch, order, [questions[i] for i in order], scored, cost, cache)

    def _trunk(self, ids: list[int], cost: Cost) -> Trunk:
        key = tuple(ids)
        if key not in self._trunks:
            config: Any = self._model.lm.config
            trunk = Trunk(int(config.get_text_config().num_hidden_layers), len(ids))
            label = Encoded([], [([*ids, 0], len(ids))])  # one label, so that there is something to read
            with torch.no_grad():
                self._model(lay_out_questions([([], [label])]).to(self._device), Want(), trunk)
            trunk.filled = True
            cost.computed += len(ids)
            self._trunks[key] = trunk
            if len(self._trunks) > _KEPT:
                self._trunks.popitem(last=False)
        self._trunks.move_to_end(key)
        return self._trunks[key]

    def _run(
        self,
        batch: Batch,
        order: Sequence[int],
        questions: Sequence[Encoded],
        scored: dict[int, Scored],
        cost: Cost,
        trunk: Trunk | None = None,
    ) -> None:
        sums, counts, greedy = self._sums(batch, trunk)
        cost.computed += batch.tokens_in_rows
        cost.unshared += batch.tokens_in_paths
        at = 0
        for i, question in zip(order, questions, strict=True):
            mine = slice(at, at + len(question.tails))
            scored[i] = Scored(sums[mine], counts[mine], greedy=greedy[mine])
            at = mine.stop

    def _sums(self, batch: Batch, trunk: Trunk | None = None) -> tuple[list[float], list[int], list[bool]]:
        batch = batch.to(self._device)
        with torch.no_grad():
            outputs = self._model(batch, Want(greedy=True), trunk)
        counts = batch.mask.sum(1)
        right = masked_sum(outputs.greedy, batch.mask, 1) == counts
        return masked_sum(outputs.logprobs, batch.mask, 1).tolist(), counts.tolist(), right.tolist()

    def _padded_rows(self, groups: Groups, scored: dict[int, Scored], cost: Cost) -> None:
        """A row a candidate; rows of like length go together, whichever question they belong to."""
        cells: list[tuple[int, int]] = []
        paths: list[tuple[list[int], list[bool]]] = []
        for trunk, questions in groups:
            for i, question in questions.items():
                n = len(question.tails)
                scored[i] = Scored([0.0] * n, [0] * n, greedy=[False] * n)
                for j, (tail, unscored) in enumerate(question.tails):
                    before = trunk + question.stem + tail[:unscored]
                    cells.append((i, j))
                    paths.append(
                        (before + tail[unscored:], [False] * len(before) + [True] * (len(tail) - unscored))
                    )
        order = sorted(range(len(paths)), key=lambda at: (-len(paths[at][0]), at))
        while order:
            many = max(1, self._row_tokens // len(paths[order[0]][0]))
            chosen, order = order[:many], order[many:]
            batch = lay_out_padded([Tree.from_path(*paths[at]) for at in chosen])
            cost.computed += batch.tokens_in_rows
            cost.unshared += batch.tokens_in_paths
            for at, total, count, right in zip(chosen, *self._sums(batch), strict=True):
                i, j = cells[at]
                scored[i].scores[j], scored[i].tokens[j], scored[i].greedy[j] = total, count, right
