"""Solved examples: which ones, and how a question with them becomes the text that a model gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from espalier.data.encode.templates import Template, prompt_text
from espalier.data.records import Message
from espalier.errors import UserError
from espalier.exam.answers.choose import ExamPrompt
from espalier.exam.task import Candidate, Question, Shots

_HERE = "\u2060QUESTION\u2060"  # stands where the question will be; no exam holds it

ShotsAs = Literal["turns", "message"]


def draw_shots(
    pool: Iterable[tuple[str, str]], count: int, seed: int, where: str
) -> tuple[tuple[str, str], ...]:
    """`count` different (question, answer) pairs of a stream, each equally likely, without holding the stream.

    Each pair's key is a hash of the seed and its text; the smallest keys win, so a repeated pair has no second
    chance, and neither the order of the file nor other pairs change a pair's key.

    Raises:
        UserError: there are fewer.
    """
    chosen: dict[bytes, tuple[str, str]] = {}
    for pair in pool:
        key = hashlib.blake2b("\x1f".join((str(seed), *pair)).encode(), digest_size=16).digest()
        if len(chosen) < count or key < max(chosen):
            chosen[key] = pair
            if len(chosen) > count:
                del chosen[max(chosen)]
    if len(chosen) < count:
        raise UserError(f"{where}: {len(chosen)} solved examples; {count} shots need as many.")
    return tuple(chosen[key] for key in sorted(chosen))


@dataclass
class Asker:
    """Puts questions, with their solved examples, into the form that a model gets.

    Attributes:
        template: of chat models; None asks in plain text.
        shots_as: with a template, whether solved examples are turns of their own or stand in one message.
        around: in plain text, the marks before and behind it that the model finds its prompt by; mostly none.
    """

    template: Template | None = None
    shots_as: ShotsAs = "turns"
    around: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        self._frames: dict[Shots, tuple[str, str]] = {}

    def ask(self, question: Question, shots: Shots | None = None) -> ExamPrompt:
        """The question with its own shots, or with others."""
        before = question.shots if shots is None else shots
        if self.template is None:
            first, last = self.around
            candidates = question.candidates
            if last:
                candidates = tuple(map(_without_space, candidates))
            return ExamPrompt(first + before.text, question.prompt + last, candidates)
        prefix, suffix = self._frame(before)
        # A turn begins with the answer itself: white space before it belongs to plain text only.
        candidates = tuple(map(_without_space, question.candidates))
        return ExamPrompt(prefix, question.prompt.strip() + suffix, candidates)

    def _frame(self, shots: Shots) -> tuple[str, str]:
        """What the template puts before and after a question."""
        assert self.template is not None
        if shots not in self._frames:
            turns: list[Message] = []
            before = shots.intro
            if self.shots_as == "message":
                before = shots.text
            else:
                for asked, answer in shots.pairs:
                    turns += [Message("user", before + asked.strip()), Message("assistant", answer.strip())]
                    before = ""
            whole = prompt_text(self.template, [*turns, Message("user", before + _HERE)])
            prefix, _, suffix = whole.rpartition(_HERE)
            if len(self._frames) > 64:  # shots drawn anew for each question are not kept
                self._frames.clear()
            self._frames[shots] = prefix, suffix
        return self._frames[shots]


def _without_space(candidate: Candidate) -> Candidate:
    text = candidate.text.lstrip()
    dropped = len(candidate.text) - len(text)
    return Candidate(text, max(0, candidate.scored_from - dropped), candidate.label)
