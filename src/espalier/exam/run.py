"""Running one task with one model: questions in, a line a question and a row of numbers out.

Questions go through in blocks, so memory does not grow with their number. After each block what was found is on the
disk; a run that was stopped goes on after the last whole block and ends in the very same files.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from espalier.data.records import LeftOut
from espalier.errors import Interrupted, UserError
from espalier.exam import scores
from espalier.exam.choose import Asked, Chooser
from espalier.exam.kept import Kept
from espalier.exam.shots import Asker
from espalier.exam.task import Question, Shots, Task
from espalier.exam.write import Writer
from espalier.models.forward import TreeModel

BLOCK = 256
"""Questions between two writes."""


@dataclass
class Examined:
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
    ) -> Examined:
        """Ask all questions of a task; ``out/NAME.jsonl`` gets a line for each.

        Args:
            settings: what must be equal for an unfinished file to be continued.
            advance: told how many questions are done.
            stopped: asked between blocks.

        Raises:
            Interrupted: `stopped` said so; what was done is kept in ``NAME.jsonl.partial``.
        """
        kept = Kept.open(out, task.name, settings)
        advance(kept.tally.n)
        questions = islice(_counted(task, kept.left_out), kept.tally.n, None)
        answer = self._write if task.generation else self._choose
        while block := list(islice(questions, BLOCK)):
            start = time.perf_counter()
            lines, numbers, cost = answer(task, block, kept)
            for question, found in zip(block, numbers, strict=True):
                kept.tally.add(question, found)
            kept.add(lines, cost, time.perf_counter() - start)
            advance(len(block))
            if stopped():
                raise Interrupted(
                    f"stopped in {task.name} after {kept.tally.n} questions; they are kept in {out}. "
                    "The same command goes on from there."
                )
        row = self._row(task, kept)
        kept.finish()
        return Examined(row, kept.prefixes)

    def _row(self, task: Task, kept: Kept) -> dict[str, Any]:
        if kept.tally.n == 0:
            raise UserError(f"{task.name}: no question in it.")
        row: dict[str, Any] = {"shots": task.shots, **kept.tally.summary(task.parts)}
        row |= {
            "normalise": None if task.generation else task.normalise,
            "seconds": round(kept.seconds, 3),
            "tokens_computed": kept.cost.computed,
            "tokens_unshared": kept.cost.unshared,
            "about": dict(task.about),
        }
        for name, counts in (("left_out", kept.left_out), ("shortened", kept.shortened)):
            if counts:
                row[name] = dict(counts)
        return row

    def _choose(self, task: Task, block: Sequence[Question], kept: Kept) -> Any:
        asking = _Asking(self.asker, block)
        found, cost = self._chooser.score(asking.asked, asking.shorter)
        lines, numbers = [], []
        for question, asked, scored, fewer in zip(block, asking.asked, found, asking.dropped, strict=True):
            said = scores.predicted(scored, task.normalise)
            numbers.append({} if question.gold is None else {"accuracy": float(said == question.gold)})
            kept.shorten(fewer, scored.cut)
            lines.append(
                _heads(question, asked, kept)
                | {
                    "candidates": [{"text": c.text, "scored_from": c.scored_from} for c in asked.candidates],
                    "scores": scored.scores,
                    "tokens": scored.tokens,
                    "normalise": task.normalise,
                    "gold": question.gold,
                    "prediction": said,
                }
                | ({"cut": scored.cut} if scored.cut else {})
            )
        return lines, numbers, cost

    def _write(self, task: Task, block: Sequence[Question], kept: Kept) -> Any:
        how = task.generation
        assert how is not None
        asking = _Asking(self.asker, block)
        texts, cuts, cost = self._writer.write(
            [asked.prefix + asked.prompt for asked in asking.asked],
            max_new_tokens=how.max_new_tokens,
            stop=how.stop,
            shorten=lambda i: None if (one := asking.shorter(i)) is None else one.prefix + one.prompt,
        )
        lines, numbers = [], []
        for question, asked, text, cut, fewer in zip(
            block, asking.asked, texts, cuts, asking.dropped, strict=True
        ):
            answer = how.clean(text)
            numbers.append(how.judge(answer, question.references) if question.references else {})
            kept.shorten(fewer, cut)
            lines.append(
                _heads(question, asked, kept)
                | {"text": answer, "references": list(question.references), "metrics": numbers[-1]}
                | ({"cut": cut} if cut else {})
            )
        return lines, numbers, cost


class _Asking:
    """The questions of a block as they are asked, with fewer solved examples where they do not fit."""

    def __init__(self, asker: Asker, block: Sequence[Question]) -> None:
        self._asker, self._block = asker, block
        self._shots: list[Shots] = [question.shots for question in block]
        self.asked: list[Asked] = [asker.ask(question) for question in block]
        self.dropped = [0] * len(block)

    def shorter(self, i: int) -> Asked | None:
        """Question i without its first example; None where it has none."""
        if not self._shots[i].pairs:
            return None
        self._shots[i] = self._shots[i].fewer()
        self.dropped[i] += 1
        self.asked[i] = self._asker.ask(self._block[i], self._shots[i])
        return self.asked[i]


def _heads(question: Question, asked: Asked, kept: Kept) -> dict[str, Any]:
    key = None
    if asked.prefix:
        key = hashlib.sha256(asked.prefix.encode()).hexdigest()[:12]
        kept.prefixes[key] = asked.prefix
    group = {"subject": question.group} if question.group else {}
    return {"id": question.id, **group, "prefix": key, "prompt": asked.prompt}


def _counted(task: Task, left_out: Counter[str]) -> Iterator[Question]:
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
