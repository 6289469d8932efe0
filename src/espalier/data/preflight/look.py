"""The records of one part: how long they are, how they end, in which languages and order of turns; from columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from espalier.data.preflight.findings import ERROR, HELD_OUT, WARNING, Finding
from espalier.data.read.account import Account
from espalier.data.store.stack import Choice, chunks
from espalier.data.store.table import ENDLESS, EQUAL, NOT_LOOKED_AT, SCRIPTS, looked_at, scattered
from espalier.trees.tree import Tree

_BINS = 12

Integers = npt.NDArray[np.int64]


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


def look(part: str, choice: Choice, draw: Callable[[Tree], str]) -> tuple[Part, list[Finding], Account]:
    """The facts of a part, what is wrong with its trees, and what was dropped or cut when they were made.

    An answer without an end token is an error where it is trained (the model would never learn to stop), a warning
    where it is only judged or read. `draw`: a tree as text, for the first that is wrong.
    """
    records = _Records(choice)
    if not choice.stack.has("tokens"):
        lengths = _lengths(choice.stack.of_records("characters", numbers) for numbers in choice.chunks())
        return records.part(len(choice), lengths, 0, "characters"), [], records.account
    picks = choice.trees()
    trees = _Trees(choice, picks)
    lengths = _lengths(
        choice.stack.of_trees("longest", numbers) for numbers in chunks(picks, choice.stack.trees)
    )
    findings = []
    if trees.counts[ENDLESS]:
        level = ERROR if trees.trained and part != HELD_OUT else WARNING
        tree = choice.stack.tree(trees.first[ENDLESS])
        advice = (
            "the last trained token is not the end of a turn, so the model would never learn to stop; check the chat "
            "template"
        )
        what = "answers without an end token"
        findings.append(
            Finding(level, what, trees.counts[ENDLESS], trees.number, tree.source, advice, part, draw(tree))
        )
    if trees.counts[EQUAL]:
        tree = choice.stack.tree(trees.first[EQUAL])
        advice = "they are the same tokens, so nothing can be learned from the difference; remove them"
        what = "equal answers with different judgements"
        findings.append(Finding(WARNING, what, trees.counts[EQUAL], trees.number, tree.source, advice, part))
    facts = records.part(trees.number, lengths, trees.trained, "tokens", trees.tokens)
    return facts, findings, records.account


class _Records:
    """What the columns of records say."""

    def __init__(self, choice: Choice) -> None:
        stack = choice.stack
        self._number = len(choice)
        self.account = Account()
        roles, causes = stack.names("role"), stack.names("causes")
        counted: Counter[str] = Counter()
        # Scripts by the largest power of two that divides a line's place, so that all lines counted were as likely.
        scripts: Counter[tuple[int, int]] = Counter()
        last = 1
        for numbers in choice.chunks():
            counted.update(_named(stack.of_records("role", numbers), roles))
            codes = stack.of_records("causes", numbers)
            for code, at, count in zip(*np.unique(codes, return_index=True, return_counts=True), strict=True):
                for cause in causes[code]:
                    self.account[cause] += int(count)
                    if cause not in self.account.first:
                        self.account.first[cause] = (stack.source(int(numbers[at])), "")
            lines, script = stack.of_records("line", numbers), stack.of_records("script", numbers)
            last = max(last, int(lines.max()))
            known = script != NOT_LOOKED_AT
            places = scattered(lines[known].astype(np.int64))
            pairs = np.stack([places & -places, script[known].astype(np.int64)])
            for (level, name), count in zip(*_columns(pairs), strict=True):
                scripts[int(level), int(name)] += int(count)
        self._roles = dict(counted.most_common(8))
        step = looked_at(last)
        kept: Counter[str] = Counter()
        for (level, name), count in scripts.items():
            if level >= step:
                kept[SCRIPTS[name]] += count
        self._languages = {name: count / kept.total() for name, count in kept.most_common()}

    def part(
        self,
        trees: int,
        lengths: tuple[Integers, Integers],
        trained: int,
        unit: str,
        tokens: int | None = None,
    ) -> Part:
        values, counts = lengths
        return Part(
            self._number,
            trees,
            int((values * counts).sum()) if tokens is None else tokens,
            trained,
            quantiles(values, counts),
            unit,
            [list(one) for one in histogram(values, counts)],
            self._languages,
            self._roles,
        )


def _columns(pairs: Integers) -> tuple[Integers, Integers]:
    columns, counts = np.unique(pairs, axis=1, return_counts=True)
    return columns.T, counts


def _named(codes: Integers, names: list[str]) -> dict[str, int]:
    counts = np.bincount(codes, minlength=len(names))
    counted: Counter[str] = Counter()
    for name, count in zip(names, counts.tolist(), strict=True):
        counted[name] += count
    return {name: count for name, count in counted.items() if count}


class _Trees:
    """What the columns of trees say: how many have each mark, and which is the first."""

    def __init__(self, choice: Choice, picks: npt.NDArray[np.int32] | None) -> None:
        self.number = self.tokens = self.trained = 0
        self.counts, self.first = {ENDLESS: 0, EQUAL: 0}, {ENDLESS: -1, EQUAL: -1}
        for numbers in chunks(picks, choice.stack.trees):
            marks = choice.stack.of_trees("marks", numbers)
            self.number += len(numbers)
            self.tokens += int(choice.stack.sizes(numbers).sum(dtype=np.int64))
            self.trained += int(choice.stack.of_trees("trained", numbers).sum(dtype=np.int64))
            for mark in self.counts:
                (at,) = np.nonzero(marks & mark)
                if len(at) and not self.counts[mark]:
                    self.first[mark] = int(numbers[at[0]])
                self.counts[mark] += len(at)


def _lengths(pieces: Iterable[Integers]) -> tuple[Integers, Integers]:
    """(lengths that occur, ascending; how often each)."""
    counted: Counter[int] = Counter()
    for piece in pieces:
        counted.update(
            dict(zip(*(part.tolist() for part in np.unique(piece, return_counts=True)), strict=True))
        )
    ordered = sorted(counted)
    return np.array(ordered, np.int64), np.array([counted[length] for length in ordered], np.int64)


def quantiles(lengths: Integers, counts: Integers | None = None) -> dict[str, int]:
    """The shortest, the longest, and what half, 90 and 99 of a hundred do not exceed; `counts`: how often each."""
    if not len(lengths):
        return {}
    ordered, sums = _cumulated(lengths, counts)
    at = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
    ranks = {name: max(math.ceil(q * int(sums[-1])) - 1, 0) for name, q in at.items()}
    return {name: int(ordered[np.searchsorted(sums, rank, side="right")]) for name, rank in ranks.items()}


def _cumulated(lengths: Integers, counts: Integers | None) -> tuple[Integers, Integers]:
    """(lengths ascending, how many are at most so long)."""
    order = np.argsort(lengths, kind="stable")
    each = np.ones(len(lengths), np.int64) if counts is None else counts
    return lengths[order], np.cumsum(each[order])


def histogram(lengths: Integers, counts: Integers | None = None) -> list[tuple[int, int, int]]:
    """About a dozen bins of equal round width up to the 99 % quantile; the last one holds all longer ones.

    >>> histogram(np.array([3, 4, 4, 5, 90]))[:3]
    [(3, 4, 1), (4, 5, 2), (5, 6, 1)]
    """
    if not len(lengths):
        return []
    ordered, sums = _cumulated(lengths, counts)
    total = int(sums[-1])
    at = int(np.searchsorted(sums, math.floor(0.99 * (total - 1)), side="right"))
    low, high, longest = int(ordered[0]), int(ordered[at]), int(ordered[-1])
    width = _round_width((high - low + 1) / _BINS)
    first = low // width * width
    edges = [*range(first, high + 1, width)]
    edges.append(edges[-1] + width)

    def below(edge: int) -> int:
        place = int(np.searchsorted(ordered, edge, side="left"))
        return int(sums[place - 1]) if place else 0

    bins = [(a, b, below(b) - below(a)) for a, b in pairwise(edges)]
    if longest >= edges[-1]:
        bins.append((edges[-1], longest + 1, total - below(edges[-1])))
    return bins


def _round_width(least: float) -> int:
    power = 10 ** max(math.floor(math.log10(max(least, 1))), 0)
    return int(next(f * power for f in (1, 2, 5, 10) if f * power >= least - 1e-9))
