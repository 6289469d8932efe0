"""What an exam is made of: questions, the solved examples before them, and how answers are judged.

Nothing here reads a file or knows a model; `own_task` and `tasks/` make these, `run` works through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from espalier.errors import UserError

Normalise = Literal["sum", "mean"]
Kind = Literal["choose", "write", "rate", "read"]
Overlong = Literal["trim", "leave_out", "error"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that may continue the prompt.

    Attributes:
        text: follows the prompt without anything between.
        scored_from: the character of `text` where the scored tokens begin; 0 scores the whole candidate.
        label: the class that it stands for, where a task has classes; what "always the same answer" means.
    """

    text: str
    scored_from: int = 0
    label: str = ""


@dataclass(frozen=True)
class Shots:
    """What stands before a question: an introduction and solved examples, the same for every candidate.

    Example: ``Shots("Add.\\n\\n", (("1 + 1 =", " 2"),)).text == "Add.\\n\\n1 + 1 = 2\\n\\n"``
    """

    intro: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    separator: str = "\n\n"

    @property
    def text(self) -> str:
        return self.intro + "".join(asked + answer + self.separator for asked, answer in self.pairs)

    def fewer(self) -> Shots:
        """Without the first example, which stands farthest from the question."""
        return Shots(self.intro, self.pairs[1:], self.separator)


@dataclass(frozen=True, slots=True)
class Question:
    """A question and what may answer it.

    Example: ``Question("7", "2 + 3 =", (Candidate(" 5"), Candidate(" 6")), 0, source="sums.jsonl:7")``

    Attributes:
        id: unique within its task.
        prompt: the text before an answer, without what `shots` holds.
        candidates: texts that continue the prompt; () where the answer is generated.
        gold: index of the right candidate; None where it is not known, or for generation.
        references: right answers of a generated one.
        source: "FILE:LINE".
        group: the subject or part that it belongs to; "" where a task has none.
        shots: what stands before it.
    """

    id: str
    prompt: str
    candidates: tuple[Candidate, ...] = ()
    gold: int | None = None
    references: tuple[str, ...] = ()
    source: str = ""
    group: str = ""
    shots: Shots = Shots()


Judge = Callable[[str, tuple[str, ...]], dict[str, float]]
"""A generated answer and the right ones -> numbers by metric, the most important first; {} where the right ones are
none that an answer can be compared with."""


@dataclass(frozen=True)
class Drawing:
    """How the tokens of written answers are drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: the smallest set of likeliest tokens with at least this mass, in (0, 1]; 1 is all.
        top_k: only so many likeliest tokens; 0 is all.
        answers: to each question.
        seed: with a question's id it decides its answers, whatever else is asked.

    Raises:
        UserError: a number out of its range; several answers that would all be the likeliest one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    answers: int = 1
    seed: int = 42

    def __post_init__(self) -> None:
        ranges = {
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
        }
        for name, holds in {**ranges, "answers": self.answers >= 1}.items():
            if not holds:
                raise UserError(
                    f"{name} is {getattr(self, name)}, out of its range; see the help of evaluate."
                )
        if self.answers > 1 and self.temperature == 0:
            raise UserError(
                f"samples: {self.answers} answers to a question at temperature 0 would all be the same one; "
                "set a temperature, such as 0.7."
            )


LIKELIEST = Drawing()
"""One answer, always the likeliest token."""


@dataclass(frozen=True)
class Generation:
    """How an answer is written and judged.

    Attributes:
        max_new_tokens: the longest answer; at most half of the model's context.
        stop: texts that end it; they are not part of it.
        judge: numbers of one answer.
        clean: turns what the model wrote into the answer that is judged.
        likelihood: whether the right answers' perplexity is measured, too.
        drawing: how the tokens are drawn.
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    judge: Judge
    clean: Callable[[str], str] = str.strip
    likelihood: bool = False
    drawing: Drawing = LIKELIEST


@dataclass(frozen=True)
class Task:
    """Questions and how they are judged.

    Attributes:
        name: what results.json calls it.
        read: the questions (and what is left out, by cause), from the beginning, as often as it is called;
            nothing is held in memory. Records instead of questions, where they are rated or read.
        shots: how many solved examples stand before a question.
        normalise: whether a candidate's score is the sum of its tokens' logprobs or their mean.
        kind: what the model does: it chooses among candidates, writes, rates answers by a scalar head, or
            reads texts.
        type: what is tested, as tables call it.
        generation: how answers are written.
        parts: subjects that are averaged together, such as C-Eval's four groups.
        about: what makes two runs comparable (prompt set and its version, files, seed); goes into results.json.
        inputs: the files that it reads; when one changes, earlier results don't count.
        overlong: what happens to a question that does not fit into the context. "trim": solved examples go first, then
            its beginning; "leave_out": solved examples go, and what still does not fit is not asked; "error": it ends
            the call, even where examples alone would have to go.
        submission: of a test set without answers, turns (question, prediction) pairs into the text of the file
            that its organisers want; None where right answers are known.
    """

    name: str
    read: Callable[[], Iterator[Any]]
    shots: int = 0
    normalise: Normalise = "sum"
    kind: Kind = "choose"
    type: str = ""
    generation: Generation | None = None
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Path, ...] = ()
    overlong: Overlong = "trim"
    submission: Callable[[Iterable[tuple[Question, int]]], str] | None = None
