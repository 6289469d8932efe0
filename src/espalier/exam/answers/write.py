"""Answers that a model writes: the likeliest or drawn ones, ended by the model's own end token or by the first stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from espalier.data.encode.encoding import leading
from espalier.errors import UserError
from espalier.exam.answers.scorer import Cost
from espalier.exam.task import LIKELIEST, Drawing
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.sampling.generate import Completion, Sampling, sample

_pieces: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Written:
    """What was written to one prompt.

    Attributes:
        texts: the answers, without the stop text.
        cut: tokens that the prompt lost at its beginning, because it does not fit into the context.
        unended: answers that reached the longest length before their end.
    """

    texts: list[str]
    cut: int
    unended: int


class Writer:
    """Writes answers with one model.

    Args:
        model: its traits say how it samples.
        tokenizer: of the model.
        rows: answers at a time.

    Attributes:
        context: the most tokens of a prompt and its answer.
    """

    def __init__(self, model: TreeModel, tokenizer: Any, *, rows: int = 64) -> None:
        self._model, self._tokenizer, self._rows = model, tokenizer, rows
        self.context = load.context_length(model.lm)
        self._ends = tuple(load.end_tokens(model.lm, tokenizer))

    def write(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str],
        shorten: Callable[[int], str | None] = lambda i: None,
        drawing: Drawing = LIKELIEST,
        seeds: Sequence[int] = (),
    ) -> tuple[list[Written], Cost]:
        """Answers to each whole prompt.

        Args:
            prompts: solved examples included.
            max_new_tokens: the longest answer; prompt and answer fit into the context together.
            stop: texts that end an answer.
            shorten: gives prompt i with fewer shots, when it does not fit; None when it cannot: then tokens
                are cut at its beginning.
            drawing: how tokens are drawn, and how many answers.
            seeds: one for each prompt; () seeds by the prompt's place.

        Raises:
            UserError: answers so long that no place is left for a prompt.
        """
        room = self.context - max_new_tokens
        if room < 1:
            raise UserError(
                f"{max_new_tokens} new tokens leave no place for a prompt in a context of {self.context}: "
                "set a smaller max_new_tokens."
            )
        ids, cut = [], []
        for i, prompt in enumerate(prompts):
            encoded = self._encoded(prompt)
            while len(encoded) > room:
                shorter = shorten(i)
                if shorter is None:
                    break
                encoded = self._encoded(shorter)
            cut.append(max(0, len(encoded) - room))
            ids.append(encoded[-room:])
        ends = (*self._ends, *stop_ids(self._tokenizer, stop))
        sampling = Sampling(max_new_tokens, drawing.temperature, drawing.top_p, drawing.top_k, ends)
        answers = sample(
            self._model.lm,
            self._model.traits,
            ids,
            sampling,
            copies=drawing.answers,
            seeds=seeds,
            rows=self._rows,
        )
        written = [self._written(each, stop, lost) for each, lost in zip(answers, cut, strict=True)]
        computed = sum(map(len, ids)) + sum(len(one.tokens) for each in answers for one in each)
        return written, Cost(computed, computed)

    def _written(self, answers: Sequence[Completion], stop: Sequence[str], cut: int) -> Written:
        texts, unended = [], 0
        for answer in answers:
            text: str = self._tokenizer.decode(answer.tokens, skip_special_tokens=True)
            ends = [at for mark in stop if (at := text.find(mark)) >= 0]
            texts.append(text[: min(ends)] if ends else text)
            unended += not (answer.ended or ends)
        return Written(texts, cut, unended)

    def _encoded(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return leading(self._tokenizer, text) + list(ids)


def stop_ids(tokenizer: Any, stop: Sequence[str]) -> list[int]:
    """Tokens that end an answer because they hold a stop text of one character; longer ones are found afterwards."""
    marks = [mark for mark in stop if len(mark) == 1]
    if not marks:
        return []
    if tokenizer not in _pieces:
        _pieces[tokenizer] = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return [i for i, text in enumerate(_pieces[tokenizer]) if any(mark in text for mark in marks)]
