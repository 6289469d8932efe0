"""Reward models: the numbers that answers get, against what people preferred.

All answers of a prompt stand in one tree and share what agrees; each answer's number is read where the model was trained
to be read (`data.encode.scored`). Of a model that does not say where, both places are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import torch

from espalier.data.encode.scored import ScoreAt, closing, score_place
from espalier.data.encode.templates import Template
from espalier.data.encode.tokenise import Encoder, encode_all
from espalier.data.records import Record
from espalier.exam.answers.scorer import ROW_TOKENS, Cost
from espalier.models.forward import TreeModel, Want
from espalier.models.load import context_length
from espalier.trees import Tree, lay_out_padded, lay_out_tree, pack


@dataclass(frozen=True)
class Rated:
    """One prompt's answers.

    Attributes:
        texts: the answers.
        scores: the model's numbers, one an answer.
        preferences: people's numbers; where one is higher, that answer was preferred.
        cut: whether the beginning of the prompt was left out, because it does not fit into the context.
        too_long: whether an answer does not fit by itself; then there are no scores.
        elsewhere: the numbers at the other place, of a model that does not say where it is read.
    """

    texts: list[str]
    scores: list[float]
    preferences: list[float]
    cut: bool = False
    too_long: bool = False
    elsewhere: list[float] | None = None


class Rater:
    """Rates answers with one reward model.

    Args:
        model: with a scalar head.
        tokenizer, template: how conversations become tokens; the same as in training.
    """

    def __init__(self, model: TreeModel, tokenizer: Any, template: Template) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._row_tokens = ROW_TOKENS.get(self._device.type, 4096)
        self._encoder = self._read_at(tokenizer, template, score_place(model.score_at))
        both = model.score_at is None and closing(tokenizer, template).tail
        self._elsewhere = self._read_at(tokenizer, template, "answer") if both else None

    def rate(self, records: Sequence[Record]) -> tuple[list[Rated], Cost]:
        """Every record's answers, in order; one with an answer that does not fit into the context says so."""
        trees: list[Tree] = []
        rated = []
        for record in records:
            encoded, account = encode_all([record], self._encoder)
            trees += encoded
            trimmed = any(key.startswith("trimmed") for key in account)
            rated.append(_rated(record, trimmed, too_long=not encoded))
        scores, cost = self._scores(trees)
        fitting = iter(scores)
        rated = [one if one.too_long else replace(one, scores=next(fitting)) for one in rated]
        if self._elsewhere is None:
            return rated, cost
        others, more = self._scores(encode_all(records, self._elsewhere)[0])
        fitting = iter(others)
        rated = [one if one.too_long else replace(one, elsewhere=next(fitting)) for one in rated]
        return rated, Cost(cost.computed + more.computed, cost.unshared + more.unshared)

    def _read_at(self, tokenizer: Any, template: Template, score_at: ScoreAt) -> Encoder:
        context = context_length(self._model.lm)
        return Encoder(tokenizer, template, context, "trim", answers_trained=False, score_at=score_at)

    def _scores(self, trees: Sequence[Tree]) -> tuple[list[list[float]], Cost]:
        lay_out = lay_out_padded if self._model.traits.method == "padded" else lay_out_tree
        cost = Cost()
        scores: list[list[float]] = [[] for _ in trees]
        padded = lay_out is lay_out_padded
        sizes = [tree.n_branches * tree.longest_path if padded else tree.n_tokens for tree in trees]
        for row in pack(sizes, max([self._row_tokens, *sizes])):
            batch = lay_out([trees[i] for i in row])
            with torch.no_grad():
                given = self._model(batch.to(self._device), Want(logprobs=False, scores=True)).scores
            assert given is not None
            for score, tree in zip(given.tolist(), batch.tree_id.tolist(), strict=True):
                scores[row[tree]].append(score)
            cost.computed += batch.tokens_in_rows
            cost.unshared += batch.tokens_in_paths
        return scores, cost


def _rated(record: Record, cut: bool, *, too_long: bool) -> Rated:
    preferences = [answer.score for answer in record.answers if answer.score is not None]
    if record.kind == "preference":  # the first answer is the better one, by however little
        preferences = [1.0, 0.0]
    texts = ["\n".join(turn.prefix + turn.content for turn in answer.messages) for answer in record.answers]
    return Rated(texts, [], preferences, cut, too_long)


def pair_numbers(scores: Sequence[float], preferences: Sequence[float]) -> dict[str, tuple[float, float]]:
    """What one prompt adds: right pairs of all its ordered pairs, their margins, and the mean numbers of the
    better and the worse answers. A tie of the model is no right pair.

    >>> pair_numbers([2.0, 0.5], [1.0, 0.0])["margin"]
    (1.5, 1.0)
    """
    pairs = [
        (scores[i], scores[j])
        for i, j in permutations(range(len(preferences)), 2)
        if preferences[i] > preferences[j]
    ]
    n = float(len(pairs))
    return {
        "accuracy": (float(sum(better > worse for better, worse in pairs)), n),
        "margin": (sum(better - worse for better, worse in pairs), n),
        "chosen_score": (sum(better for better, _ in pairs), n),
        "rejected_score": (sum(worse for _, worse in pairs), n),
    }
