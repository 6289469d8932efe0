"""Running one task with one model: questions in, a line a question and a row of numbers out.

Questions go through in blocks, so memory does not grow with their number. After each block what was found is on the
disk; a run that was stopped goes on after the last whole block and ends in the very same files.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from espalier.checking.mathematics import NOT_COMPARABLE
from espalier.data.encode.templates import choose_template
from espalier.data.records import LeftOut
from espalier.errors import Stopped, UserError
from espalier.exam.answers.choose import Chooser
from espalier.exam.answers.rate import Rater
from espalier.exam.answers.read import Reader
from espalier.exam.answers.write import Writer
from espalier.exam.journal import Journal
from espalier.exam.numbers.calibration import calibration
from espalier.exam.task import LIKELIEST, Task
from espalier.exam.tasks.shots import Asker
from espalier.exam.ways import ChoiceWay, RatingWay, ReadingWay, Way, WritingWay
from espalier.models.forward import TreeModel

METHODS = {
    "choose_sum": "logprob",
    "choose_mean": "perplexity",
    "write": "generation",
    "rate": "scalar head",
    "read": "likelihood",
}
"""How a model answers, as tables call it: a mean of logprobs is the log of a perplexity."""

BLOCK = 256
"""Questions between two writes."""


@dataclass
class ExamResult:
    """What a task gave: its row of results.json, and the texts that stand before its questions, by key."""

    row: dict[str, Any]
    prefixes: dict[str, str] = field(default_factory=dict)


@dataclass
class Examiner:
    """Examines one model.

    Attributes:
        model, tokenizer: what is examined.
        asker: how questions become text.
        row_tokens: the most tokens of one forward; None: what is fast on the model's device.
    """

    model: TreeModel
    tokenizer: Any
    asker: Asker = field(default_factory=Asker)
    row_tokens: int | None = None

    def __post_init__(self) -> None:
        self._chooser = Chooser(self.model, self.tokenizer, row_tokens=self.row_tokens)
        self._writer = Writer(self.model, self.tokenizer)

    def examine(
        self,
        task: Task,
        out: Path,
        *,
        settings: Mapping[str, Any],
        advance: Callable[[int], None] = lambda n: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> ExamResult:
        """Ask all questions of a task; ``out/NAME.jsonl`` gets a line for each.

        Args:
            settings: what must be equal for an unfinished file to be continued.
            advance: told how many questions are done.
            stopped: asked between blocks.

        Raises:
            Stopped: `stopped` said so; what was done is kept in ``NAME.jsonl.partial``.
        """
        way = self._way(task)
        journal = Journal.open(out, task.name, settings)
        advance(journal.done)
        questions = islice(_counted(task, journal.left_out), journal.done, None)
        while block := list(islice(questions, BLOCK)):
            start = time.perf_counter()
            try:
                answered, cost = way.answer(block, journal)
            except Stopped:  # while a judge was at work
                raise _stopped(task, journal, out) from None
            for one in answered:
                if one.numbers is not None:
                    journal.tally.add(one.numbers, group=one.group, chance=one.chance, gold=one.gold)
            journal.add([one.line for one in answered], cost, time.perf_counter() - start)
            advance(len(block))
            if stopped():
                raise _stopped(task, journal, out)
        row = _row(task, journal) | self._limits(way)
        journal.finish()
        if isinstance(way, RatingWay):
            lines = (json.loads(line) for line in (out / f"{task.name}.jsonl").open(encoding="utf-8"))
            row["calibration"] = calibration(lines)
        return ExamResult(row, journal.prefixes)

    def _way(self, task: Task) -> Way:
        if task.kind == "choose":
            return ChoiceWay(self._chooser, self.asker, task)
        if task.kind == "write":
            assert task.generation is not None
            return WritingWay(self._writer, self._chooser, self.asker, task.generation, task.overlong)
        if task.kind == "read":
            return ReadingWay(Reader(self.model, self.tokenizer))
        if self.model.scalar_head is None:
            raise UserError(
                f"{task.name} rates answers, and this model has no scalar head: it is no reward model. "
                "Train one with `stage: reward`."
            )
        template = self.asker.template or choose_template(self.tokenizer)
        return RatingWay(Rater(self.model, self.tokenizer, template), task.overlong)

    def _limits(self, way: Way) -> dict[str, Any]:
        """The context, and where answers are written how long they may be, and how they are drawn."""
        limits: dict[str, Any] = {"context": self._writer.context}
        if isinstance(way, WritingWay):
            limits |= {"max_new_tokens": way.max_new_tokens, "wanted_new_tokens": way.how.max_new_tokens}
            if way.how.drawing != LIKELIEST:
                limits["drawing"] = asdict(way.how.drawing)
        return limits


def _stopped(task: Task, journal: Journal, out: Path) -> Stopped:
    return Stopped(
        f"stopped in {task.name} after {journal.done} questions; they are kept in {out}. "
        "The same command goes on from there."
    )


def _row(task: Task, journal: Journal) -> dict[str, Any]:
    if journal.done == 0:
        raise UserError(f"{task.name}: no question in it.")
    asked = journal.done - journal.shortened["too_long"]
    if asked == 0:
        raise UserError(
            f"{task.name}: no question fits into the model's context, the first {journal.first}: "
            "take a model with a longer context (--rope-scaling)."
        )
    row: dict[str, Any] = {"shots": task.shots, **journal.tally.summary(task.parts)}
    dropped = journal.shortened.pop("dropped_shots", 0)
    if task.shots:
        row["mean_shots"] = task.shots - dropped / asked
    row |= {
        "type": task.type,
        "method": METHODS[f"choose_{task.normalise}" if task.kind == "choose" else task.kind],
        "normalise": task.normalise if task.kind == "choose" else None,
        "seconds": round(journal.seconds, 3),
        "tokens_computed": journal.cost.computed,
        "tokens_unshared": journal.cost.unshared,
        "about": dict(task.about),
    }
    for name in (NOT_COMPARABLE, "unended"):
        if journal.shortened[name]:
            row[name] = journal.shortened.pop(name)
    if journal.first:
        row["first_too_long"] = journal.first
    for name, counts in (("left_out", journal.left_out), ("shortened", +journal.shortened)):
        if counts:
            row[name] = dict(counts)
    return row


def _counted(task: Task, left_out: Counter[str]) -> Iterator[Any]:
    """The questions; what is left out is counted by cause, from the beginning."""
    left_out.clear()
    for question in task.read():
        if isinstance(question, LeftOut):
            left_out[question.cause] += 1
        else:
            yield question


def settings_hash(settings: Mapping[str, Any]) -> str:
    """A name for a set of settings, equal when they are."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
