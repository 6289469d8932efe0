"""Where the score of an answer is read: one place for reward training, its exam, rollouts and whoever asks later.

A reward model's number is read at the last token that it is shown. Many templates write something behind the token
that ends an answer (ChatML a line break), which a model that samples never writes. So an answer is shown up to its end
token (``answer``), and to reward models that were trained on whole rendered conversations with what the template
writes behind it (``turn``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from espalier.data.encode.encoding import Path, adds_bos, encode_pieces
from espalier.data.encode.templates import Template
from espalier.data.records import ASSISTANT, USER, Message

ScoreAt = Literal["answer", "turn"]

OF_OTHERS: ScoreAt = "turn"
"""How a reward model is read whose folder does not say: model cards show a whole conversation, written by
`apply_chat_template`, and so did Espalier 0.1."""


def score_place(said: str | None) -> ScoreAt:
    """Where a reward model is read, from what its folder says (`ScalarHead.score_at`)."""
    return "answer" if said == "answer" else OF_OTHERS


def until_score(path: Path, score_at: ScoreAt) -> Path:
    """A conversation up to the token where its answer's score is read.

    Args:
        path: ids, and which of them a model would learn to write.
        score_at: ``answer`` cuts behind the last of those, ``turn`` nothing.

    >>> until_score(([5, 6, 7, 8], [False, True, True, False]), "answer")
    ([5, 6, 7], [False, True, True])
    """
    ids, trained = path
    if score_at == "turn" or True not in trained:
        return path
    end = len(trained) - trained[::-1].index(True)
    return ids[:end], trained[:end]


@dataclass(frozen=True)
class Closing:
    """How a template closes an answer.

    Attributes:
        end: ids of the mark that ends an answer, which a model learns to write.
        tail: ids that the template writes behind it.
    """

    end: tuple[int, ...]
    tail: tuple[int, ...]

    def closed(self, ids: Sequence[int], ended: bool, score_at: ScoreAt) -> list[int]:
        """A prompt with its sampled answer as a reward model was shown it in training.

        Args:
            ids: of prompt and answer, the token that ended it included.
            ended: whether it ended by itself. One that was cut short is left as it is: it has no end to be read at.
            score_at: where the model is read.

        An answer that has ended with another of the stop tokens (the tokenizer's own) gets the template's mark instead.
        """
        if not ended:
            return list(ids)
        written = list(ids) if ids[-1] == self.end[-1] else [*ids[:-1], *self.end]
        return [*written, *self.tail] if score_at == "turn" else written


def closing(tokenizer: Any, template: Template) -> Closing:
    """Read off a short conversation as it is trained."""
    pieces = template.render([Message(USER, "a"), Message(ASSISTANT, "b")])
    ((ids, trained),) = encode_pieces(tokenizer, [pieces], bos=adds_bos(tokenizer))
    end = len(trained) - trained[::-1].index(True)
    mark = tokenizer.encode(template.end_of_turn, add_special_tokens=False)
    if mark != ids[end - len(mark) : end]:  # joined with the text before it: its last token is what ends
        mark = ids[end - 1 : end]
    return Closing(tuple(mark), tuple(ids[end:]))
