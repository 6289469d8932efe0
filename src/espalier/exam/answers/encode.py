"""Questions -> token ids, with the scored tokens of each candidate.

The truth is the encoding of the whole text: prompt and candidate are encoded whole, and scored are the tokens
after the longest common prefix with the encoding of what stands before the scored text; where the tokenizer
merges across that boundary, the merged token is scored. Texts that begin alike are not encoded again and again:
a head is cut where the tokenizer cuts words anyway, and every cut is checked against a whole encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from espalier.data.encode.encoding import leading
from espalier.errors import UserError
from espalier.exam.task import Candidate
from espalier.trees.tree import agreement

MANY = 6
"""Candidates from which it pays to cut the question too."""

_MARGIN = 3  # whole words that stay behind a cut: what follows may still change the last one


@dataclass(frozen=True)
class Encoded:
    """A question's candidates as tokens after those of its `Head`.

    Attributes:
        stem: tokens that all candidates share before any scored token.
        tails: of each candidate, the tokens after the stem, and how many of them come before the scored ones.
    """

    stem: list[int]
    tails: list[tuple[list[int], int]]

    @property
    def n_rows(self) -> int:
        """Tokens to compute when the stem is laid out once: nobody reads what a last token leads to."""
        return len(self.stem) + sum(max(0, len(tail) - 1) for tail, _ in self.tails)

    @property
    def longest(self) -> int:
        return len(self.stem) + max(len(tail) for tail, _ in self.tails)


class Head:
    """A text that many texts begin with, encoded once as far as that is exact.

    Attributes:
        ids: tokens of the head up to the cut, a bos token included where the tokenizer puts one.
        rest: the text after the cut.
    """

    def __init__(self, tokenizer: Any, text: str, sample: str, *, begins: bool = True) -> None:
        """`sample`: one text that follows, to check the cut with; `begins`: whether a bos token may stand before."""
        self._tokenizer = tokenizer
        self.ids: list[int] = leading(tokenizer, text + sample) if begins else []
        self.rest = text
        place, ids = _cut(tokenizer, text)
        if place:
            rest = text[place:]
            whole, part = _encode(tokenizer, [text + sample, rest + sample])
            if whole == ids + part:
                self.ids, self.rest = self.ids + ids, rest

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens after `ids` of the head followed by each text."""
        return _encode(self._tokenizer, [self.rest + text for text in texts])


def encode_questions(
    tokenizer: Any, head: Head, asked: Sequence[tuple[str, Sequence[Candidate]]]
) -> list[Encoded]:
    """Each (prompt, candidates) after the head.

    Raises:
        UserError: a candidate that adds no token, or nothing before it.
    """
    texts: list[str] = []
    heads: list[Head | None] = []
    for prompt, candidates in asked:
        own = None
        if len(candidates) >= MANY:
            own = Head(tokenizer, head.rest + prompt, candidates[-1].text, begins=False)
        heads.append(own)
        start = head.rest + prompt if own is None else own.rest
        texts += [start + c.text[: c.scored_from] for c in candidates] if _marked(candidates) else [start]
        texts += [start + c.text for c in candidates]
    all_ids = iter(_encode(tokenizer, texts))
    encoded = []
    for (_, candidates), own in zip(asked, heads, strict=True):
        before = (
            [next(all_ids) for _ in candidates] if _marked(candidates) else [next(all_ids)] * len(candidates)
        )
        whole = [next(all_ids) for _ in candidates]
        shared = [] if own is None else own.ids
        encoded.append(_encoded(tokenizer, head, shared, candidates, before, whole))
    return encoded


def _marked(candidates: Sequence[Candidate]) -> bool:
    return any(c.scored_from for c in candidates)


def _encoded(
    tokenizer: Any,
    head: Head,
    shared: list[int],
    candidates: Sequence[Candidate],
    before: list[list[int]],
    whole: list[list[int]],
) -> Encoded:
    starts = [agreement(b, w) for b, w in zip(before, whole, strict=True)]
    for candidate, ids, start in zip(candidates, whole, starts, strict=True):
        if start == len(ids):
            raise UserError(
                f"the candidate {candidate.text!r} adds no token to its question, so it cannot be scored."
            )
    if not (head.ids or shared or all(starts)):
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if first is None:
            raise UserError("nothing stands before a candidate: give the question some text.")
        shared = [first]
    common = min(starts)
    for ids in whole[1:]:
        common = min(common, agreement(whole[0], ids))
    tails = [(ids[common:], start - common) for ids, start in zip(whole, starts, strict=True)]
    return Encoded(shared + whole[0][:common], tails)


def _cut(tokenizer: Any, text: str) -> tuple[int, list[int]]:
    """A character where the tokenizer cuts words whatever follows the text, and the tokens before it; 0 if none."""
    if not tokenizer.is_fast or not text:
        return 0, []
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    words = encoding.word_ids
    seen = 0
    for at in range(len(words) - 1, 0, -1):
        if words[at] is None or words[at] != words[at - 1]:
            seen += 1
            if seen > _MARGIN and words[at - 1] is not None:
                return encoding.offsets[at - 1][1], encoding.ids[:at]
    return 0, []


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if tokenizer.is_fast:  # without offsets and masks: three times as fast as calling the tokenizer
        many = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in many]
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids
