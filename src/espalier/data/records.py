"""What one line of a user's data means: a prompt with zero or more answers, which is already the tree to train on.

A record is checked once, when it is made from a row (`read.rows`), and never changes. It knows where it came
from (`source`, "FILE:LINE"), so that every later complaint can name the place. Records hold text only:
how turns are written down is a template's business (`templates`), numbers are `tokenise`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `role` is one of system, user, assistant, tool. `prefix` is text that already stands at the beginning of
    an assistant's turn and is not the assistant's own work: it is shown to the model but never trained.

    >>> Message("assistant", "东边日出西边雨。", prefix="下联：").content
    '东边日出西边雨。'
    """

    role: str
    content: str
    prefix: str = ""


Messages = tuple[Message, ...]

KINDS = ("text", "chat", "preference", "ranking", "prompt", "unpaired")


@dataclass(frozen=True, slots=True)
class Answer:
    """One continuation of a prompt: usually one assistant turn, several where dialogues part earlier.

    `score` is how good somebody found it, in any unit; `label` whether somebody called it good, as KTO uses it.
    """

    messages: Messages
    score: float | None = None
    label: bool | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt and its answers; the assistant's turns in the answers are what is trained or judged.

    >>> Record.chat((Message("user", "2+3=?"), Message("assistant", "5")), source="sums.jsonl:7").answers
    (Answer(messages=(Message(role='assistant', content='5', prefix=''),), score=None, label=None),)

    Attributes:
        kind: one of `KINDS`.
        prompt: what is read; empty for a document.
        answers: none of a prompt, one of a document, a chat or an unpaired answer, else the best first.
        tools: the JSON text of the functions that the assistant may call.
        reference: what a rule reward compares an answer with.
        prefix: how an answer to a prompt must begin (see `Message.prefix`).
    """

    kind: str
    prompt: Messages = ()
    answers: tuple[Answer, ...] = ()
    source: str = ""
    tools: str | None = None
    reference: str | None = None
    prefix: str = ""

    @classmethod
    def document(cls, text: str, source: str = "") -> Record:
        """A text for pretraining: an answer to nothing, written without a template."""
        return cls("text", (), (Answer((Message(ASSISTANT, text),)),), source)

    @classmethod
    def chat(cls, messages: Messages, source: str = "", tools: str | None = None) -> Record:
        """A conversation; every assistant turn of it is an example to imitate, so its prompt is its opening."""
        end = len(_opening(messages))
        return cls("chat", messages[:end], (Answer(messages[end:]),), source, tools)

    @classmethod
    def preference(
        cls,
        prompt: Messages,
        chosen: Messages,
        rejected: Messages,
        source: str = "",
        tools: str | None = None,
    ) -> Record:
        """Two answers, the first better than the second; they are never equal."""
        return cls("preference", prompt, (Answer(chosen), Answer(rejected)), source, tools)

    @classmethod
    def ranking(
        cls,
        prompt: Messages,
        answers: Sequence[tuple[Messages, float]],
        source: str = "",
        tools: str | None = None,
    ) -> Record:
        """At least two (answer, score), best first. Equal scores make no pair; at least two scores differ."""
        return cls("ranking", prompt, tuple(Answer(*answer) for answer in answers), source, tools)

    @classmethod
    def unpaired(
        cls, prompt: Messages, answer: Messages, label: bool, source: str = "", tools: str | None = None
    ) -> Record:
        """One answer that somebody called good (`label` True) or bad (False)."""
        return cls("unpaired", prompt, (Answer(answer, label=label),), source, tools)

    @property
    def opening(self) -> Messages:
        """The turns before the assistant's first."""
        return _opening(self.prompt)

    @property
    def branches(self) -> list[Messages]:
        """Each answer with the prompt before it."""
        return [(*self.prompt, *answer.messages) for answer in self.answers]

    @property
    def messages(self) -> Messages:
        """The conversation of a chat or a prompt."""
        return self.branches[0] if self.answers else self.prompt

    @property
    def text(self) -> str:
        """A document's text."""
        return self.answers[0].messages[0].content

    @property
    def texts(self) -> list[str]:
        """Everything said, turn by turn; of a ranking the prompt and the best answer (others may be drawn by chance)."""
        answers = self.answers[:1] if self.kind == "ranking" else self.answers
        turns = [*self.prompt, *(turn for answer in answers for turn in answer.messages)]
        return [turn.prefix + turn.content for turn in turns]


def _opening(messages: Messages) -> Messages:
    end = next((at for at, turn in enumerate(messages) if turn.role == ASSISTANT), len(messages))
    return messages[:end]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A row that is no record: `cause` is short enough to be counted, `reason` says what to do about it.

    >>> str(BadRecord("a.jsonl:7", "empty answer", "column 'output' is empty"))
    "a.jsonl:7: column 'output' is empty"

    Attributes:
        hides: whether further records of the file, nobody knows how many, could not be read because of it.
    """

    source: str
    cause: str
    reason: str
    hides: bool = False

    def __post_init__(self) -> None:
        """Half a character of the user's text, shown in the reason, could not be written to any file."""
        object.__setattr__(self, "reason", self.reason.encode("utf-8", "backslashreplace").decode("utf-8"))

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A sound row that teaches nothing here (say, chosen equal to rejected); counted, but no error.

    >>> LeftOut("a.jsonl:7", "chosen equals rejected").cause
    'chosen equals rejected'
    """

    source: str
    cause: str
