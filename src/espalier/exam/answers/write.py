"""Answers that a model writes: greedy, ended by the model's own end token or by the first stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from espalier.data.encode.encoding import leading
from espalier.errors import UserError
from espalier.exam.answers.scorer import Cost
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.sampling.generate import Sampling, sample

_pieces: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()


class Writer:
    """Writes answers with one model.

    Args:
        model: its traits say how it samples.
        tokenizer: of the model.
        rows: answers at a time.
    """

    def __init__(self, model: TreeModel, tokenizer: Any, *, rows: int = 64) -> None:
        self._model, self._tokenizer, self._rows = model, tokenizer, rows
        self._context = load.context_length(model.lm)
        self._ends = tuple(load.end_tokens(model.lm, tokenizer))

    def write(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str],
        shorten: Callable[[int], str | None] = lambda i: None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> tuple[list[str], list[int], Cost]:
        """An answer to each whole prompt, without the stop text; the likeliest, unless a temperature is given.

        Args:
            prompts: solved examples included.
            max_new_tokens: the longest answer; prompt and answer fit into the context together.
            stop: texts that end an answer.
            shorten: gives prompt i with fewer shots, when it does not fit; None when it cannot: then tokens
                are cut at its beginning.
            temperature, top_p, top_k: of the sampling; 0 takes the likeliest token.

        Returns:
            The answers, how many tokens were cut of each prompt, and what was computed.
        """
        room = self._context - max_new_tokens
        if room < 1:
            raise UserError(
                f"{max_new_tokens} new tokens leave no place for a prompt in a context of {self._context}: "
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
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, ends)
        answers = sample(self._model.lm, self._model.traits, ids, sampling, rows=self._rows)
        texts = [self._text(answer.tokens, stop) for (answer,) in answers]
        computed = sum(map(len, ids)) + sum(len(answer.tokens) for (answer,) in answers)
        return texts, cut, Cost(computed, computed)

    def _encoded(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return leading(self._tokenizer, text) + list(ids)

    def _text(self, tokens: list[int], stop: Sequence[str]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        ends = [at for mark in stop if (at := text.find(mark)) >= 0]
        return text[: min(ends)] if ends else text


def stop_ids(tokenizer: Any, stop: Sequence[str]) -> list[int]:
    """Tokens that end an answer because they hold a stop text of one character; longer ones are found afterwards."""
    marks = [mark for mark in stop if len(mark) == 1]
    if not marks:
        return []
    if tokenizer not in _pieces:
        _pieces[tokenizer] = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return [i for i, text in enumerate(_pieces[tokenizer]) if any(mark in text for mark in marks)]
