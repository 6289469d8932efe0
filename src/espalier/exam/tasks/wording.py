"""How a prompt set asks the questions of one CLUE exam: the prompt, the candidates, and which part is scored.

`plain` is a clear question with the label words as answers; only the answer is scored.

`pangu` are sentences that contain the candidate, scored on the text around it. AFQMC, TNEWS, IFLYTEK and CSL have the
templates and scored spans of the PanGu-alpha side's own evaluation code. The others have the templates of the first
RLHF project that scored PanGu-alpha on CLUE, with a span of our choosing, because theirs was wrong: what follows the
candidate is scored, given the candidate (OCNLI, CMNLI, C3, and BUSTM, EPRSTMT, CSLDCP by analogy), or the candidate and
what follows it (ChID, as PanGu-alpha scores CMRC2019; CLUEWSC, where the noun stands in the pronoun's place or does
not). Scores are means over the scored tokens: perplexities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from espalier.exam.task import Candidate, Normalise
from espalier.exam.tasks.items import Item

VERSIONS = {"plain": 1, "pangu": 1}

Fields = Mapping[str, Any]


def _word_alone(fields: Fields, word: str) -> tuple[str, int]:
    return word, 0


@dataclass(frozen=True)
class Wording:
    """How one exam's questions are asked in one prompt set.

    Attributes:
        prompt: the text before a candidate, from a question's fields.
        words: the words that answer, in the order of the labels in the files; () where the labels are those words, or
            where questions have choices of their own.
        span: fields and a word -> the candidate's text, and the character where its scored part begins.
        normalise: answers of very different length are compared by the mean of their tokens; label words by the sum,
            which is the logprob of the answer itself.
        separator: what stands between solved examples.
        longest: a field and how many of its characters a solved example shows; "" and 0: all fields are whole.
    """

    prompt: Callable[[Fields], str]
    words: tuple[str, ...] = ()
    span: Callable[[Fields, str], tuple[str, int]] = _word_alone
    normalise: Normalise = "sum"
    separator: str = "\n\n"
    longest: tuple[str, int] = ("", 0)

    def ask(self, item: Item, labels: tuple[str, ...]) -> tuple[str, tuple[Candidate, ...]]:
        """The prompt and its candidates, each with the character where the scored tokens begin."""
        words = item.choices or self.words or labels
        return self.prompt(item.fields), tuple(
            Candidate(*self.span(item.fields, word), "" if item.choices else word) for word in words
        )

    def example(self, item: Item, labels: tuple[str, ...]) -> tuple[str, str]:
        """The prompt and the answer of a solved example; the item's label must be known."""
        gold = item.gold
        assert gold is not None
        field, characters = self.longest
        if field:
            item = replace(item, fields={**item.fields, field: item.fields[field][:characters]})
        prompt, candidates = self.ask(item, labels)
        return prompt, candidates[gold].text


def pangu(
    prompt: Callable[[Fields], str],
    span: Callable[[Fields, str], tuple[str, int]],
    words: tuple[str, ...] = (),
    longest: tuple[str, int] = ("", 0),
) -> Wording:
    """A wording of the set `pangu`."""
    return Wording(prompt, words, span, normalise="mean", separator="\n", longest=longest)


def template(text: str) -> Callable[[Fields], str]:
    """A prompt from a question's fields.

    >>> template("新闻标题：{sentence}\\n")({"sentence": "{十}"})
    '新闻标题：{十}\\n'
    """
    return lambda fields: text.format_map(fields)


def scored_after(opening: str, rest: str) -> Callable[[Fields, str], tuple[str, int]]:
    """The candidate and what belongs to it, then the rest, which is scored; both are templates.

    >>> scored_after("：", "{sentence}")({"sentence": "很好"}, "好评")
    ('好评：很好', 3)
    """

    def span(fields: Fields, word: str) -> tuple[str, int]:
        head = word + opening.format_map(fields)
        return head + rest.format_map(fields), len(head)

    return span
