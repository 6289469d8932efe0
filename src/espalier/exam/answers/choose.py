"""Questions with candidates -> their scores: encoded, made to fit into the context, and scored in trees."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from espalier.data.encode.encoding import adds_bos
from espalier.exam.answers.encode import Encoded, Head, encode_questions
from espalier.exam.answers.scorer import Cost, Scored, Scorer
from espalier.exam.task import Candidate
from espalier.models.forward import TreeModel
from espalier.models.load import context_length

_KEPT = 4  # heads that are remembered between calls


@dataclass(frozen=True)
class ExamPrompt:
    """A question as the model gets it: ``prefix + prompt``, and the candidates that may follow."""

    prefix: str
    prompt: str
    candidates: tuple[Candidate, ...]


class Chooser:
    """Scores questions with one model; remembers the latest prefixes from call to call.

    Args:
        model: of the forward; its traits say whether trees are laid out as trees.
        tokenizer: of the model.
        row_tokens: the most tokens of one forward; None: what is fast on the model's device.
    """

    def __init__(self, model: TreeModel, tokenizer: Any, *, row_tokens: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._scorer = Scorer(model, row_tokens=row_tokens)
        self._context = context_length(model.lm)
        self._heads: OrderedDict[str, Head] = OrderedDict()

    def score(
        self, asked: Sequence[ExamPrompt], shorten: Callable[[int], ExamPrompt | None] = lambda i: None
    ) -> tuple[list[Scored], Cost]:
        """Score the candidates of each question, in the order given.

        Args:
            asked: the questions.
            shorten: gives question i with fewer shots, when it does not fit into the context; None when it
                cannot: then tokens are cut at its beginning, and counted. A question with a candidate that does
                not fit by itself is not scored, and says so (`Scored.excess`).

        Raises:
            UserError: a candidate that adds no token, or nothing before it.
        """
        groups: list[tuple[list[int], dict[int, Encoded]]] = []
        shortened: dict[int, Scored] = {}
        waiting = dict(enumerate(asked))
        while waiting:
            shorter: dict[int, ExamPrompt] = {}
            for prefix in dict.fromkeys(one.prefix for one in waiting.values()):
                mine = {i: one for i, one in waiting.items() if one.prefix == prefix}
                trunk, questions = self._encoded(prefix, mine)
                for i in list(questions):
                    # The last token is a label only: nothing is computed at its position.
                    excess = len(trunk) + questions[i].longest - 1 - self._context
                    if excess <= 0:
                        continue
                    again = shorten(i)
                    if again is None:
                        remaining, shortened[i] = self._without(trunk, questions[i], excess)
                        if remaining is not None:
                            groups.append(([], {i: remaining}))
                    else:
                        shorter[i] = again
                    del questions[i]
                if questions:
                    groups.append((trunk, questions))
            waiting = shorter
        scored, cost = self._scorer.score(groups)
        for i, how in shortened.items():
            one = scored.get(i, how)
            scored[i] = replace(one, cut=how.cut, lost=how.lost, excess=how.excess)
        return [scored[i] for i in range(len(asked))], cost

    def _encoded(self, prefix: str, mine: dict[int, ExamPrompt]) -> tuple[list[int], dict[int, Encoded]]:
        head = self._head(prefix, next(iter(mine.values())))
        asked = [(one.prompt, one.candidates) for one in mine.values()]
        return head.ids, dict(zip(mine, encode_questions(self._tokenizer, head, asked), strict=True))

    def _without(self, trunk: list[int], question: Encoded, excess: int) -> tuple[Encoded | None, Scored]:
        """The question without `excess` tokens at its beginning, after the bos token where there is one, and how so.

        Where that is not enough, and only part of each candidate is scored, that part loses its end, the same in all.
        None where candidates are scored whole.
        """
        whole = trunk + question.stem
        kept = 1 if adds_bos(self._tokenizer) else 0
        if len(whole) - excess > kept:
            shorter = replace(question, stem=whole[:kept] + whole[kept + excess :])
            return shorter, Scored([], [], cut=excess)
        stem = whole[:1]
        room = min(self._context + 1 - len(stem) - unscored for _, unscored in question.tails)
        if room < 1 or not all(unscored for _, unscored in question.tails):
            return None, Scored([], [], excess=excess - max(0, len(whole) - kept - 1))
        tails = [(tail[: unscored + room], unscored) for tail, unscored in question.tails]
        lost = max(len(tail) - unscored for tail, unscored in question.tails) - room
        return Encoded(stem, tails), Scored([], [], cut=len(whole) - len(stem), lost=lost)

    def _head(self, prefix: str, first: ExamPrompt) -> Head:
        if prefix not in self._heads:
            self._heads[prefix] = Head(self._tokenizer, prefix, first.prompt + first.candidates[0].text)
            if len(self._heads) > _KEPT:
                self._heads.popitem(last=False)
        self._heads.move_to_end(prefix)
        return self._heads[prefix]
