"""What a model does in an exam: choose among candidates, write answers, rate answers, read texts.

Each way takes a block of questions and gives, for each, its line of ``TASK.jsonl`` and what it adds to the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from espalier.exam.answers.choose import Chooser, ExamPrompt
from espalier.exam.answers.rate import Rater, pair_numbers
from espalier.exam.answers.read import Reader
from espalier.exam.answers.scorer import Cost, Scored
from espalier.exam.answers.write import Writer
from espalier.exam.journal import Journal
from espalier.exam.judges.mathematics import NOT_COMPARABLE
from espalier.exam.numbers import scores
from espalier.exam.task import Candidate, Generation, Question, Shots, Task
from espalier.exam.tasks.shots import Asker


@dataclass
class QuestionResult:
    """One question's line, and what it adds to the numbers (see `Tally.add`)."""

    line: dict[str, Any]
    numbers: dict[str, scores.Number]
    group: str = ""
    chance: float | None = None
    gold: str = ""


class Way(Protocol):
    """How a task's questions are answered."""

    def answer(self, block: Sequence[Any], journal: Journal) -> tuple[list[QuestionResult], Cost]:
        """Every question of a block, in order; what did not fit is counted in `journal`."""
        ...


@dataclass
class ChoiceWay:
    """The candidate with the highest score is the answer."""

    chooser: Chooser
    asker: Asker
    task: Task

    def answer(self, block: Sequence[Question], journal: Journal) -> tuple[list[QuestionResult], Cost]:
        asking = QuestionBlock(self.asker, block)
        scored_block, cost = self.chooser.score(asking.asked, asking.shorter)
        answered = []
        for question, asked, scored, fewer in zip(
            block, asking.asked, scored_block, asking.dropped, strict=True
        ):
            journal.shorten(fewer, scored.cut)
            answered.append(self._answered(question, asked, scored, journal))
        return answered, cost

    def _answered(
        self, question: Question, asked: ExamPrompt, scored: Scored, journal: Journal
    ) -> QuestionResult:
        choice = scores.predicted(scored, self.task.normalise)
        line = heads(question, asked, journal) | {
            "candidates": [{"text": c.text, "scored_from": c.scored_from} for c in asked.candidates],
            "scores": scored.scores,
            "tokens": scored.tokens,
            "normalise": self.task.normalise,
            "gold": question.gold,
            "prediction": choice,
        }
        if scored.cut:
            line["cut"] = scored.cut
        chance = 1 / len(question.candidates)
        if question.gold is None:
            return QuestionResult(line, {}, question.group, chance)
        name = question.candidates[question.gold].label or str(question.gold)
        return QuestionResult(
            line, {"accuracy": float(choice == question.gold)}, question.group, chance, name
        )


@dataclass
class WritingWay:
    """The answer is what the model writes."""

    writer: Writer
    chooser: Chooser
    asker: Asker
    how: Generation

    def answer(self, block: Sequence[Question], journal: Journal) -> tuple[list[QuestionResult], Cost]:
        how, asking = self.how, QuestionBlock(self.asker, block)
        texts, cuts, cost = self.writer.write(
            [asked.prefix + asked.prompt for asked in asking.asked],
            max_new_tokens=how.max_new_tokens,
            stop=how.stop,
            shorten=lambda i: None if (one := asking.shorter(i)) is None else one.prefix + one.prompt,
        )
        likely = self._likelihoods(block, asking, cost) if how.likelihood else [{} for _ in block]
        answered = []
        for i, (question, text, cut) in enumerate(zip(block, texts, cuts, strict=True)):
            answer = how.clean(text)
            judged = how.judge(answer, question.references) if question.references else {}
            journal.shorten(asking.dropped[i], cut)
            line = heads(question, asking.asked[i], journal)
            line |= {"text": answer, "references": list(question.references), "metrics": judged}
            if cut:
                line["cut"] = cut
            if how.likelihood and not likely[i]:
                journal.shortened["perplexity_left_out"] += 1
            if NOT_COMPARABLE in judged:
                journal.shortened[NOT_COMPARABLE] += 1
            numbers = {name: value for name, value in judged.items() if name != NOT_COMPARABLE}
            answered.append(QuestionResult(line, {**numbers, **likely[i]}, question.group))
        return answered, cost

    def _likelihoods(
        self, block: Sequence[Question], asking: QuestionBlock, cost: Cost
    ) -> list[dict[str, scores.Number]]:
        """Nats a token of each question's first right answer; {} where the answer is longer than the context."""
        likelihoods: list[dict[str, scores.Number]] = [{} for _ in block]
        fitting = [i for i, question in enumerate(block) if self.chooser.fits(question.references[0])]
        asked = [
            ExamPrompt(asking.asked[i].prefix, asking.asked[i].prompt, (Candidate(block[i].references[0]),))
            for i in fitting
        ]
        scored, more = self.chooser.score(asked)
        cost.computed += more.computed
        cost.unshared += more.unshared
        for i, one in zip(fitting, scored, strict=True):
            likelihoods[i] = {"nats_per_token": (-one.scores[0], float(one.tokens[0]))}
        return likelihoods


@dataclass
class RatingWay:
    """Answers that people compared get their numbers from a reward model."""

    rater: Rater

    def answer(self, block: Sequence[Any], journal: Journal) -> tuple[list[QuestionResult], Cost]:
        ratings, cost = self.rater.rate(block)
        answered = []
        for record, rated in zip(block, ratings, strict=True):
            journal.shorten(0, rated.cut)
            preferred, right = (
                max(range(len(v)), key=v.__getitem__) for v in (rated.scores, rated.preferences)
            )
            line = {
                "id": record.source.rsplit(":", 1)[-1],
                "source": record.source,
                "prompt": [{"role": m.role, "content": m.content} for m in record.prompt],
                "candidates": [{"text": text} for text in rated.texts],
                "scores": rated.scores,
                "preference": rated.preferences,
                "gold": right,
                "prediction": preferred,
            }
            numbers = pair_numbers(rated.scores, rated.preferences)
            line["metrics"] = {name: x / n for name, (x, n) in numbers.items()}
            answered.append(QuestionResult(line, dict(numbers), chance=0.5))
        return answered, cost


@dataclass
class ReadingWay:
    """Texts are read; how likely each of their tokens is."""

    reader: Reader

    def answer(self, block: Sequence[Any], journal: Journal) -> tuple[list[QuestionResult], Cost]:
        likelihoods, cost = self.reader.read([record.text for record in block])
        answered = []
        for record, (nats, tokens, size) in zip(block, likelihoods, strict=True):
            line = {"id": record.source.rsplit(":", 1)[-1], "source": record.source}
            line |= {"nats": nats, "tokens": tokens, "bytes": size}
            numbers: dict[str, scores.Number] = {
                "bits_per_byte": (nats / scores.LN2, float(size)),
                "nats_per_token": (nats, float(tokens)),
            }
            line["metrics"] = {"bits_per_byte": nats / scores.LN2 / size}
            answered.append(QuestionResult(line, numbers))
        return answered, cost


class QuestionBlock:
    """The questions of a block as they are asked, with fewer solved examples where they do not fit."""

    def __init__(self, asker: Asker, block: Sequence[Question]) -> None:
        self._asker, self._block = asker, block
        self._shots: list[Shots] = [question.shots for question in block]
        self.asked: list[ExamPrompt] = [asker.ask(question) for question in block]
        self.dropped = [0] * len(block)

    def shorter(self, i: int) -> ExamPrompt | None:
        """Question i without its first example; None where it has none."""
        if not self._shots[i].pairs:
            return None
        self._shots[i] = self._shots[i].fewer()
        self.dropped[i] += 1
        self.asked[i] = self._asker.ask(self._block[i], self._shots[i])
        return self.asked[i]


def heads(question: Question, asked: ExamPrompt, journal: Journal) -> dict[str, Any]:
    """How a question's line begins; the text before it is kept once, by a key."""
    key = None
    if asked.prefix:
        key = hashlib.sha256(asked.prefix.encode()).hexdigest()[:12]
        journal.prefixes[key] = asked.prefix
    group = {"subject": question.group} if question.group else {}
    return {"id": question.id, **group, "prefix": key, "prompt": asked.prompt}
