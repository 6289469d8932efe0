"""What a model does in an exam: choose among candidates, write answers, rate answers, read texts.

Each way takes a block of questions and gives, for each, its line of ``TASK.jsonl`` and what it adds to the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from espalier.checking.mathematics import NOT_COMPARABLE
from espalier.exam.answers.choose import Chooser, ExamPrompt
from espalier.exam.answers.rate import Rater, pair_numbers
from espalier.exam.answers.read import Reader
from espalier.exam.answers.scorer import Cost, Scored
from espalier.exam.answers.write import Writer, Written
from espalier.exam.journal import Journal, Misfit
from espalier.exam.numbers import scores
from espalier.exam.task import Candidate, Generation, Overlong, Question, Shots, Task
from espalier.exam.tasks.shots import Asker


@dataclass
class QuestionResult:
    """One question's line, and what it adds to the numbers (see `Tally.add`); None where it was left out."""

    line: dict[str, Any]
    numbers: dict[str, scores.Number] | None
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
            misfit = Misfit(question.id, question.source, fewer, scored.cut, scored.lost, scored.excess)
            if journal.leaves_out(misfit, self.task.overlong):
                answered.append(QuestionResult(misfit.line(), None))
            else:
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
        line |= {name: tokens for name, tokens in (("cut", scored.cut), ("lost", scored.lost)) if tokens}
        chance = 1 / len(question.candidates)
        if question.gold is None:
            return QuestionResult(line, {}, question.group, chance)
        name = question.candidates[question.gold].label or str(question.gold)
        return QuestionResult(
            line, {"accuracy": float(choice == question.gold)}, question.group, chance, name
        )


@dataclass
class WritingWay:
    """The answer is what the model writes; of several answers to a question the mean counts."""

    writer: Writer
    chooser: Chooser
    asker: Asker
    how: Generation
    overlong: Overlong

    @property
    def max_new_tokens(self) -> int:
        """The longest answer: half of the context is the question's."""
        return min(self.how.max_new_tokens, max(1, self.writer.context // 2))

    def answer(self, block: Sequence[Question], journal: Journal) -> tuple[list[QuestionResult], Cost]:
        how, asking = self.how, QuestionBlock(self.asker, block)
        written, cost = self.writer.write(
            [asked.prefix + asked.prompt for asked in asking.asked],
            max_new_tokens=self.max_new_tokens,
            stop=how.stop,
            shorten=lambda i: None if (one := asking.shorter(i)) is None else one.prefix + one.prompt,
            drawing=how.drawing,
            seeds=[_seed(how.drawing.seed, question.id) for question in block],
        )
        likely = self._likelihoods(block, asking, cost) if how.likelihood else [{} for _ in block]
        answered = []
        for i, (question, one) in enumerate(zip(block, written, strict=True)):
            misfit = Misfit(question.id, question.source, asking.dropped[i], one.cut)
            if journal.leaves_out(misfit, self.overlong):
                answered.append(QuestionResult(misfit.line(), None))
                continue
            if how.likelihood and not likely[i] and question.references:
                journal.shortened["perplexity_left_out"] += 1
            journal.shortened["unended"] += one.unended
            line = heads(question, asking.asked[i], journal)
            answered.append(self._judged(question, one, line, likely[i], journal))
        return answered, cost

    def _judged(
        self,
        question: Question,
        written: Written,
        line: dict[str, Any],
        likely: dict[str, scores.Number],
        journal: Journal,
    ) -> QuestionResult:
        answers = [self.how.clean(text) for text in written.texts]
        right = tuple(text for text in question.references if text.strip())
        each = [self.how.judge(answer, right) for answer in answers] if right else []
        journal.shortened[NOT_COMPARABLE] += sum(NOT_COMPARABLE in judged for judged in each)
        names = list(dict.fromkeys(name for judged in each for name in judged))
        metrics = {name: sum(judged.get(name, 0.0) for judged in each) / len(each) for name in names}
        line |= {"text": answers[0], "references": list(question.references), "metrics": metrics}
        if len(answers) > 1:
            line["texts"] = answers
        if written.cut:
            line["cut"] = written.cut
        numbers = {name: value for name, value in metrics.items() if name != NOT_COMPARABLE}
        return QuestionResult(line, {**numbers, **likely}, question.group)

    def _likelihoods(
        self, block: Sequence[Question], asking: QuestionBlock, cost: Cost
    ) -> list[dict[str, scores.Number]]:
        """Nats a token of each question's first right answer; {} where there is none, or one longer than the context."""
        likelihoods: list[dict[str, scores.Number]] = [{} for _ in block]
        known = [i for i, question in enumerate(block) if any(question.references)]
        asked = [
            ExamPrompt(asking.asked[i].prefix, asking.asked[i].prompt, (Candidate(block[i].references[0]),))
            for i in known
        ]
        scored, more = self.chooser.score(asked)
        cost.computed += more.computed
        cost.unshared += more.unshared
        for i, one in zip(known, scored, strict=True):
            if not one.excess:
                likelihoods[i] = {"nats_per_token": (-one.scores[0], float(one.tokens[0]))}
        return likelihoods


def _seed(seed: int, name: str) -> int:
    """Of one question's answers, whatever is asked beside it."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest())


@dataclass
class RatingWay:
    """Answers that people compared get their numbers from a reward model."""

    rater: Rater
    overlong: Overlong

    def answer(self, block: Sequence[Any], journal: Journal) -> tuple[list[QuestionResult], Cost]:
        ratings, cost = self.rater.rate(block)
        answered = []
        for record, rated in zip(block, ratings, strict=True):
            name = record.source.rsplit(":", 1)[-1]
            misfit = Misfit(name, record.source, cut=int(rated.cut), excess=int(rated.too_long))
            if journal.leaves_out(misfit, self.overlong):
                answered.append(QuestionResult(misfit.line(), None))
                continue
            preferred, right = (
                max(range(len(v)), key=v.__getitem__) for v in (rated.scores, rated.preferences)
            )
            line = {
                "id": name,
                "source": record.source,
                "prompt": [{"role": m.role, "content": m.content} for m in record.prompt],
                "candidates": [{"text": text} for text in rated.texts],
                "scores": rated.scores,
                "preference": rated.preferences,
                "gold": right,
                "prediction": preferred,
            }
            numbers = pair_numbers(rated.scores, rated.preferences)
            if rated.elsewhere is not None:
                line["scores_elsewhere"] = rated.elsewhere
                numbers["accuracy_elsewhere"] = pair_numbers(rated.elsewhere, rated.preferences)["accuracy"]
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
