"""Scores of candidates: packs of trees, with what many questions share computed once.

What stands before a run of questions (the solved examples) is their trunk. Questions that fit into one row with
their trunk are a tree there, and rows hold as many trees as fit. A trunk whose questions need several rows is
read once into a cache that all of them go on from. Models that take no trees get a padded row a candidate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from espalier.data.encoding import adds_bos
from espalier.errors import UserError
from espalier.exam.encode import Encoded, Head, encode_questions
from espalier.exam.rows import lay_out_questions
from espalier.exam.task import Candidate
from espalier.maths.reduce import masked_sum
from espalier.models.forward import TreeModel, Want
from espalier.models.load import context_length
from espalier.models.trunk import Trunk
from espalier.trees import Batch, Tree, lay_out_padded, pack

ROW_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of one forward: on a CPU what stays in its caches (measured: benchmarks/exams.py). A single question may be
longer."""

_KEPT = 4  # heads and trunks that are remembered between calls
_SHORTEST_TRUNK = 64  # tokens; a shorter one is not worth a cache


@dataclass(frozen=True)
class Scored:
    """What a model says about one question's candidates.

    Attributes:
        scores: sum of the logprobs of the scored tokens of each candidate.
        tokens: how many they are.
        cut: tokens that were left out at the beginning, because the question does not fit into the context.
    """

    scores: list[float]
    tokens: list[int]
    cut: int = 0


@dataclass
class Cost:
    """Tokens computed, and what an evaluator that shares nothing would compute."""

    computed: int = 0
    unshared: int = 0


@dataclass(frozen=True)
class Asked:
    """A question as the model gets it: ``prefix + prompt``, and the candidates that may follow."""

    prefix: str
    prompt: str
    candidates: tuple[Candidate, ...]


class Chooser:
    """Scores questions with one model; remembers the latest prefixes from call to call.

    Args:
        model: of the forward; its traits say whether trees are laid out as trees.
        tokenizer: of the model.
        row_tokens: the most tokens of one forward; None: what is fast on the model's device.
    """

    def __init__(self, model: TreeModel, tokenizer: Any, *, row_tokens: int | None = None) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._padded = model.traits.method == "padded"
        self._device = next(model.parameters()).device
        self._row_tokens = row_tokens or ROW_TOKENS.get(self._device.type, 4096)
        self._context = context_length(model.lm)
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._trunks: OrderedDict[tuple[int, ...], Trunk] = OrderedDict()

    def score(
        self, asked: Sequence[Asked], shorten: Callable[[int], Asked | None] = lambda i: None
    ) -> tuple[list[Scored], Cost]:
        """Score the candidates of each question, in the order given.

        Args:
            asked: the questions.
            shorten: gives question i with fewer shots, when it does not fit into the context; None when it
                cannot: then tokens are cut at its beginning, and counted.

        Raises:
            UserError: a candidate that adds no token, nothing before it, or longer than the context alone.
        """
        cost = Cost()
        found: list[Scored | None] = [None] * len(asked)
        groups: list[tuple[list[int], dict[int, Encoded]]] = []
        cut: dict[int, int] = {}
        waiting = dict(enumerate(asked))
        while waiting:
            shorter: dict[int, Asked] = {}
            for prefix in dict.fromkeys(one.prefix for one in waiting.values()):
                mine = {i: one for i, one in waiting.items() if one.prefix == prefix}
                trunk, questions = self._encoded(prefix, mine)
                for i in list(questions):
                    # The last token is a label only: nothing is computed at its position.
                    excess = len(trunk) + questions[i].longest - 1 - self._context
                    if excess <= 0:
                        continue
                    again = shorten(i)
                    if again is None:
                        groups.append(([], {i: self._without(trunk, questions[i], excess)}))
                        cut[i] = excess
                    else:
                        shorter[i] = again
                    del questions[i]
                if questions:
                    groups.append((trunk, questions))
            waiting = shorter
        if self._padded:
            self._padded_rows(groups, found, cost)
        else:
            self._tree_rows(groups, found, cost)
        for i, tokens in cut.items():
            scored = found[i]
            assert scored is not None
            found[i] = replace(scored, cut=tokens)
        return [scored for scored in found if scored is not None], cost

    def _encoded(self, prefix: str, mine: dict[int, Asked]) -> tuple[list[int], dict[int, Encoded]]:
        head = self._head(prefix, next(iter(mine.values())))
        asked = [(one.prompt, one.candidates) for one in mine.values()]
        return head.ids, dict(zip(mine, encode_questions(self._tokenizer, head, asked), strict=True))

    def _without(self, trunk: list[int], question: Encoded, excess: int) -> Encoded:
        """The question without `excess` tokens at its beginning, after the bos token where there is one."""
        whole = trunk + question.stem
        kept = 1 if adds_bos(self._tokenizer) else 0
        if len(whole) - excess <= kept:
            raise UserError(
                f"a candidate of {question.longest - len(question.stem)} tokens does not fit into the model's "
                f"context of {self._context}: leave the question out, or take a model with a longer context."
            )
        return replace(question, stem=whole[:kept] + whole[kept + excess :])

    def _head(self, prefix: str, first: Asked) -> Head:
        if prefix not in self._heads:
            self._heads[prefix] = Head(self._tokenizer, prefix, first.prompt + first.candidates[0].text)
            if len(self._heads) > _KEPT:
                self._heads.popitem(last=False)
        self._heads.move_to_end(prefix)
        return self._heads[prefix]

    def _tree_rows(
        self, groups: Sequence[tuple[list[int], dict[int, Encoded]]], found: list[Scored | None], cost: Cost
    ) -> None:
        small: list[tuple[list[int], dict[int, Encoded]]] = []
        for trunk, questions in groups:
            size = sum(q.n_rows for q in questions.values())
            fits = len(trunk) + size <= self._row_tokens
            if self._cacheable(trunk, questions) and (not fits or tuple(trunk) in self._trunks):
                self._after_trunk(trunk, questions, found, cost)
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
            self._run(batch, order, [q for _, questions in chosen for q in questions.values()], found, cost)

    def _cacheable(self, trunk: list[int], questions: dict[int, Encoded]) -> bool:
        windows = [w for w in self._model.traits.windows.values() if w is not None]
        longest = len(trunk) + max(q.longest for q in questions.values())
        fits = self._model.traits.method == "pieces" and all(w >= longest for w in windows)
        return fits and len(trunk) >= _SHORTEST_TRUNK and all(q.stem for q in questions.values())

    def _after_trunk(
        self, trunk: list[int], questions: dict[int, Encoded], found: list[Scored | None], cost: Cost
    ) -> None:
        cache = self._trunk(trunk, cost)
        names = list(questions)
        for row in pack([max(1, questions[i].n_rows) for i in names], self._row_tokens):
            order = [names[at] for at in row]
            batch = lay_out_questions([([], [questions[i] for i in order])], after=len(trunk))
            self._run(batch, order, [questions[i] for i in order], found, cost, cache)

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
        found: list[Scored | None],
        cost: Cost,
        trunk: Trunk | None = None,
    ) -> None:
        sums, counts = self._sums(batch, trunk)
        cost.computed += batch.tokens_in_rows
        cost.unshared += batch.tokens_in_paths
        at = 0
        for i, question in zip(order, questions, strict=True):
            n = len(question.tails)
            found[i] = Scored(sums[at : at + n], counts[at : at + n])
            at += n

    def _sums(self, batch: Batch, trunk: Trunk | None = None) -> tuple[list[float], list[int]]:
        batch = batch.to(self._device)
        with torch.no_grad():
            logprobs = self._model(batch, Want(), trunk).logprobs
        assert logprobs is not None
        return masked_sum(logprobs, batch.mask, 1).tolist(), batch.mask.sum(1).tolist()

    def _padded_rows(
        self, groups: Sequence[tuple[list[int], dict[int, Encoded]]], found: list[Scored | None], cost: Cost
    ) -> None:
        """A row a candidate; rows of like length go together, whichever question they belong to."""
        cells: list[tuple[int, int]] = []
        paths: list[tuple[list[int], list[bool]]] = []
        for trunk, questions in groups:
            for i, question in questions.items():
                found[i] = Scored([0.0] * len(question.tails), [0] * len(question.tails))
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
            for at, total, count in zip(chosen, *self._sums(batch), strict=True):
                i, j = cells[at]
                scored = found[i]
                assert scored is not None
                scored.scores[j], scored.tokens[j] = total, count
