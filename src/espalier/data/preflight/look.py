"""The trees of one part: how long they are, how they end, in which languages and order of turns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from espalier.data.clean.quality import language
from espalier.data.clean.view import texts_of
from espalier.data.preflight.findings import ERROR, HELD_OUT, WARNING, Finding
from espalier.data.records import Chat, Prompt, Record, Text
from espalier.trees.tree import Tree

_BINS = 12
_LOOKED_AT, _CHARACTERS = 2000, 400  # a script is plain from few words, and a share from few records


@dataclass(frozen=True)
class Part:
    """The records of one part and what became of them; lengths are tokens of the longest path of each tree."""

    records: int
    trees: int
    tokens: int
    trained_tokens: int
    lengths: dict[str, int]
    unit: str
    """What lengths are counted in: tokens, or characters where no tokenizer is at hand."""
    histogram: list[list[int]]
    """[from, up to but not including, how many trees] of each bin"""
    languages: dict[str, float]
    """Script -> share of the records looked at; "" is text without a letter."""
    roles: dict[str, int]
    """The order of the turns -> how many records have it."""


def look(
    part: str,
    records: Sequence[Record],
    trees: Sequence[Tree],
    *,
    stop: Collection[int],
    cutoff_len: int,
    draw: Callable[[Tree], str],
) -> tuple[Part, list[Finding]]:
    """The facts of a part and what is wrong with its trees.

    Args:
        stop: ids that end an answer. An answer without one is an error where it is trained (the model would never
            learn to stop), a warning where it is only judged or read. Documents have no answers, and paths of
            `cutoff_len` tokens were cut, which their account says.
        draw: a tree as text, for the first that is wrong.
    """
    lengths = np.zeros(len(trees), np.int64)
    tokens = trained = 0
    endless: list[Tree] = []
    equal: list[Tree] = []
    has_ends = not (records and isinstance(records[0], Text))
    for index, tree in enumerate(trees):
        longest, branches, ended = 0, 0, True
        for node, depth in tree.nodes():
            size = len(node.tokens)
            longest = max(longest, depth + size)
            tokens += size
            learned = node.trained.nonzero()[0]
            trained += len(learned)
            if node.ends:
                branches += len(node.ends)
                last = node.tokens[learned[-1:]] if len(learned) else node.tokens[-4:]
                ended = ended and (depth + size >= cutoff_len or not stop_free(last, stop))
        lengths[index] = longest
        if has_ends and not ended:
            endless.append(tree)
        if branches > 1 and has_equal_answers(tree):
            equal.append(tree)
    findings = []
    if endless:
        findings.append(
            Finding(
                ERROR if trained and part != HELD_OUT else WARNING,
                "answers without an end token",
                len(endless),
                len(trees),
                endless[0].source,
                "the last trained token is not the end of a turn, so the model would never learn to stop; check the "
                "chat template",
                part,
                draw(endless[0]),
            )
        )
    if equal:
        findings.append(
            Finding(
                WARNING,
                "equal answers with different judgements",
                len(equal),
                len(trees),
                equal[0].source,
                "they are the same tokens, so nothing can be learned from the difference; remove them",
                part,
            )
        )
    return facts(records, lengths, tokens, trained), findings


def facts(
    records: Sequence[Record],
    lengths: npt.NDArray[np.int64],
    tokens: int,
    trained: int,
    unit: str = "tokens",
) -> Part:
    """The numbers of a part from the `lengths` (N,) of its trees or prompts."""
    return Part(
        len(records),
        len(lengths),
        tokens,
        trained,
        quantiles(lengths),
        unit,
        [list(one) for one in histogram(lengths)],
        languages(records),
        dict(Counter(map(role_order, records)).most_common(8)),
    )


def stop_free(tokens: npt.NDArray[np.int64], stop: Collection[int]) -> bool:
    return not any(int(token) in stop for token in tokens)


def has_equal_answers(tree: Tree) -> bool:
    """Whether two branches are the same tokens although one is said to be better."""
    scores = tree.extras.get("scores")
    for node, _ in tree.nodes():
        leaves: dict[bytes, list[int]] = {}
        for child in node.children:
            leaves.setdefault(child.tokens.tobytes(), []).extend(child.ends)
        for branches in (list(node.ends), *leaves.values()):
            if len(branches) > 1 and (scores is None or len({float(scores[b]) for b in branches}) > 1):
                return True
    return False


def quantiles(lengths: npt.NDArray[np.int64]) -> dict[str, int]:
    """The shortest, the longest, and what half, 90 and 99 of a hundred do not exceed."""
    if not len(lengths):
        return {}
    ordered = np.sort(lengths)
    at = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
    return {name: int(ordered[max(math.ceil(q * len(ordered)) - 1, 0)]) for name, q in at.items()}


def histogram(lengths: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """About a dozen bins of equal round width up to the 99 % quantile; the last one holds all longer ones.

    >>> histogram(np.array([3, 4, 4, 5, 90]))[:3]
    [(3, 4, 1), (4, 5, 2), (5, 6, 1)]
    """
    if not len(lengths):
        return []
    low, high, longest = (
        int(lengths.min()),
        int(np.quantile(lengths, 0.99, method="lower")),
        int(lengths.max()),
    )
    width = _round_width((high - low + 1) / _BINS)
    first = low // width * width
    edges = [*range(first, high + 1, width)]
    edges.append(edges[-1] + width)
    bins = [(a, b, int(((lengths >= a) & (lengths < b)).sum())) for a, b in pairwise(edges)]
    if longest >= edges[-1]:
        bins.append((edges[-1], longest + 1, int((lengths >= edges[-1]).sum())))
    return bins


def _round_width(least: float) -> int:
    power = 10 ** max(math.floor(math.log10(max(least, 1))), 0)
    return int(next(f * power for f in (1, 2, 5, 10) if f * power >= least - 1e-9))


def languages(records: Sequence[Record]) -> dict[str, float]:
    """Script -> share of the records, from evenly spaced ones and the beginning of each."""
    step = max(math.ceil(len(records) / _LOOKED_AT), 1)
    found = Counter(language(_beginning(record)) for record in records[::step])
    return {name: count / found.total() for name, count in found.most_common()}


def _beginning(record: Record) -> str:
    """The first characters of each turn, so that a long question does not hide the answer's language."""
    return "\n".join(text[:_CHARACTERS] for text in texts_of(record)[:4])


def role_order(record: Record) -> str:
    """
    >>> from espalier.data.records import Message
    >>> role_order(Chat((Message("user", "a"), Message("assistant", "b")) * 3))
    'user, assistant (several times)'
    """
    if isinstance(record, Text):
        return "document"
    if isinstance(record, (Chat, Prompt)):
        turns = [message.role for message in record.messages]
    else:
        turns = [message.role for message in record.prompt]
    seen = list(dict.fromkeys(turns))
    answers = "" if isinstance(record, (Chat, Prompt)) else " -> answers"
    return ", ".join(seen) + (" (several times)" if len(turns) > len(seen) else "") + answers
