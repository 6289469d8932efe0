"""The conversation: questions in, answers out as they come, and what is said about them.

Answers go to the standard output and everything else to the standard error, so that a pipe carries answers alone.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from espalier.data.records import SYSTEM, Message
from espalier.engine.signals import Ended
from espalier.errors import UserError
from espalier.screen import Screen, safe
from espalier.serve.contest import Contest
from espalier.serve.opening import ModelOpener
from espalier.serve.scorer import ServedScorer
from espalier.serve.session import Session
from espalier.serve.terminal.editor import PipedQuestions, Questions


@dataclass
class Chat:
    """One conversation at a terminal or through a pipe.

    Attributes:
        session: with the model.
        opener: of models that are named in the conversation.
        questions: where they come from.
        votes: the jsonl file of votes.
        show_thoughts: whether a model's thoughts are shown, dim and before its answer.
        scorer: a reward model, whose score stands below each answer.
        contest: where two models answer at a time.
        kept: the files that this conversation was saved in.
    """

    session: Session
    opener: ModelOpener
    questions: Questions
    votes: Path
    show_thoughts: bool = True
    scorer: ServedScorer | None = None
    contest: Contest | None = None
    kept: set[Path] = field(default_factory=set)
    answers: Screen = field(default_factory=Screen)
    notes: Screen = field(default_factory=lambda: Screen(stderr=True))

    @property
    def by_hand(self) -> bool:
        """Whether a person sits there, who can mend what was wrong."""
        return not isinstance(self.questions, PipedQuestions)

    def note(self, text: str, style: str = "dim") -> None:
        """Something that is no part of an answer."""
        self.answers.file.flush()
        self.notes.say(text, style)

    def prompt_of_last(self) -> list[Message]:
        """What the last answer is an answer to."""
        session = self.session
        system = [Message(SYSTEM, session.system)] if session.system else []
        return [*system, *session.messages[:-1]]

    def ask(self, question: str | None) -> None:
        """Shows the answer, or both, to one more question; None asks the last one again."""
        forgotten = self.session.forgotten
        try:
            self._show(self._pieces(question))
        except KeyboardInterrupt as asked:
            if isinstance(asked, Ended) and asked.number != signal.SIGINT:
                raise
            self.answers.out(" …")
        if self.session.forgotten > forgotten:
            self.note("the oldest exchange was forgotten: the conversation had outgrown the model")
        if self.session.cut:
            self.note(f"{self.session.cut} tokens at the beginning were left out: more than the model holds")
        if self.session.ended == "length":
            self.note("the answer has reached its limit (/set max_new_tokens=…)")
        self.show_scores()

    def _pieces(self, question: str | None) -> Iterator[tuple[str, str, str]]:
        """(which answer, kind, more text)."""
        if self.contest is not None:
            yield from self.contest.retry() if question is None else self.contest.ask(question)
            return
        pieces = self.session.retry() if question is None else self.session.ask(question)
        for kind, more in pieces:
            yield "", kind, more

    def _show(self, pieces: Iterator[tuple[str, str, str]]) -> None:
        label = last = ""
        begun = False
        for which, kind, more in pieces:
            if which != label:
                if label:
                    self.answers.out("")
                self.note(f"— {which} —", "bold")
                label, last, begun = which, "", False
            if kind == "thoughts":
                if self.show_thoughts:
                    self.notes.print(Text(safe(more), style="dim italic"), end="", soft_wrap=True)
            else:
                if last == "thoughts" and self.show_thoughts:
                    self.notes.print("\n")
                self.answers.out(more, end="")
                begun = True
            last = kind
            self.notes.file.flush()
            self.answers.file.flush()
        if last == "thoughts" and self.show_thoughts and not begun:
            self.notes.print("")
        self.answers.out("")
        self.answers.file.flush()

    def show_scores(self) -> None:
        """The reward model's, of the last answer or both."""
        if self.scorer is None or not self.session.messages:
            return
        try:
            if self.contest is not None and self.contest.complete:
                a, b = self.contest.scored(lambda prompt, answer: self._score(prompt, answer))
                self.note(f"score of a {a:.4g}, of b {b:.4g}")
            elif self.session.messages[-1].content:
                score = self._score(self.prompt_of_last(), self.session.messages[-1])
                self.note(f"score {score:.4g}")
        except UserError as error:
            self.note(f"no score: {error}", "yellow")

    def _score(self, prompt: list[Message], answer: Message) -> float:
        assert self.scorer is not None
        return self.scorer.score(prompt, [answer.content])[0]

    def close(self) -> None:
        """Ends the models' threads."""
        self.session.model.close()
        self.end_contest()

    def end_contest(self) -> None:
        """One model answers again."""
        if self.contest is not None and self.contest.rival is not self.session.model:
            self.contest.rival.close()
        self.contest = None


def talk(chat: Chat, obey: Any) -> None:
    """Asks until /exit or the end of the input.

    Args:
        obey: is given the chat and each line that begins with a slash; False ends.

    Raises:
        UserError: of a pipe, where nobody can ask in another way.
    """
    try:
        while (line := chat.questions.read()) is not None:
            if not line.strip():
                continue
            try:
                if line.startswith("/"):
                    if not obey(chat, line):
                        break
                else:
                    chat.ask(line.strip("\n"))
            except UserError as error:
                if not chat.by_hand:
                    raise
                chat.note(f"error: {error}", "red")
    except KeyboardInterrupt as asked:
        if isinstance(asked, Ended) and asked.number != signal.SIGINT:
            raise
    finally:
        chat.close()
