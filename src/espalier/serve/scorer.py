"""A reward model's score of an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from espalier.data.encode.encoding import adds_bos, encode_pieces
from espalier.data.encode.scored import score_place, until_score
from espalier.data.encode.templates import choose_template
from espalier.data.records import ASSISTANT, Message
from espalier.errors import UserError
from espalier.models.classifier import TextClassifier
from espalier.models.forward import Want
from espalier.models.load import context_length
from espalier.models.open import OpenModel
from espalier.serve.engine import ONE_AT_A_TIME
from espalier.trees import Tree, lay_out_tree


class ServedScorer:
    """Scores answers, higher is better; the scale is the model's own.

    Args:
        name: under which it is known.
        opened: a reward model, or an encoder with one label.

    Raises:
        UserError: it has no scalar head.
    """

    def __init__(self, name: str, opened: OpenModel | TextClassifier, template: str = "auto") -> None:
        self.name = name
        self._classifier = opened if isinstance(opened, TextClassifier) else None
        if isinstance(opened, TextClassifier):
            self.context = opened.longest
            return
        if opened.scalar_head is None:
            raise UserError(f"{opened.name}: is no reward model: it has no head that gives one number.")
        self._tokenizer: Any = opened.required_tokenizer
        self._template = choose_template(self._tokenizer, template)
        self._model = opened.tree_model()
        self.context = context_length(opened.lm)

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The score of each answer to one conversation.

        Raises:
            UserError: the template refuses it, it is longer than the model's context, or a score is no number.
        """
        with ONE_AT_A_TIME, torch.no_grad():
            scores = self._scores(messages, answers)
        if not all(map(math.isfinite, scores)):
            raise UserError(
                f"the reward model {self.name} gives a score that is no number: its weights are broken."
            )
        return scores

    def _scores(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        if self._classifier is not None:
            turns = [message.as_turn() for message in messages]
            pairs = [(turns, answer) for answer in answers]
            return [float(score) for score in self._classifier(pairs, ["the request"] * len(pairs))]
        rendered = [
            self._template.render([*messages, Message(ASSISTANT, answer)], train_from=len(messages))
            for answer in answers
        ]
        place = score_place(self._model.score_at)
        paths = encode_pieces(self._tokenizer, rendered, bos=adds_bos(self._tokenizer))
        read = [until_score(path, place)[0] for path in paths]
        longest = max(map(len, read))
        if self.context is not None and longest > self.context:
            raise UserError(
                f"the conversation has {longest} tokens for the reward model {self.name}, whose context is {self.context}."
            )
        found = []
        for ids in read:
            tree = Tree.from_path(ids, [False] * len(ids))
            batch = lay_out_tree([tree]).to(next(self._model.lm.parameters()).device)
            scores = self._model(self._model.fitting(batch), Want(logprobs=False, scores=True)).scores
            found.append(float(scores[0]))
        return found
