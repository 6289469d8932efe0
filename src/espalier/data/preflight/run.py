"""The preflight of one run: collects what its parts show while they are read and tokenised, and reports it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from espalier.data.preflight.compare import other_languages, shared_prompts, swapped_pairs
from espalier.data.preflight.findings import ERROR, HELD_OUT, TRAIN, Cause, Finding, left_out, unasked
from espalier.data.preflight.look import Part, look
from espalier.data.read.account import Account
from espalier.data.read.sources import LoadReport
from espalier.data.store.stack import Choice
from espalier.trees.tree import Tree


@dataclass(frozen=True)
class Source:
    """A file or folder: how many records were read of it, and in which formats."""

    records: int
    formats: dict[str, int]


@dataclass(frozen=True)
class PreflightReport:
    """What is known of a run's data.

    Attributes:
        read: records read, those that were left out among them.
        cutoff_len: the most tokens of a path; None where nothing is cut.
        sources: by path.
        left_out: most frequent first.
        parts: by name.
        findings: errors first.
    """

    read: int
    cutoff_len: int | None
    sources: dict[str, Source]
    left_out: list[Cause]
    parts: dict[str, Part]
    findings: list[Finding]

    def as_json(self) -> dict[str, Any]:
        """As summary.json and `espalier inspect --json` show it."""
        return asdict(self)


class Preflight:
    """What is known of a run's data so far; parts may come in any order, and `report` be asked at any time.

    Args:
        cutoff_len: the most tokens of a path; None where nothing is cut.
        draw: a tree as text, for errors.
    """

    def __init__(self, cutoff_len: int | None, draw: Callable[[Tree], str]) -> None:
        self._cutoff_len, self._draw = cutoff_len, draw
        self._loaded: dict[str, LoadReport] = {}
        self._parts: dict[str, Part] = {}
        self._choices: dict[str, Choice] = {}
        self._findings: dict[str, list[Finding]] = {}
        self._apart = False
        self._tokenised = Account()

    @property
    def account(self) -> Account:
        """Records left out or trimmed so far, by cause."""
        whole = Account()
        for loaded in self._loaded.values():
            whole.take_in(loaded.left_out)
        whole.take_in(self._tokenised)
        return whole

    def read(self, key: str, loaded: LoadReport) -> None:
        """The files behind an option have become records (again, when they are wanted as another kind)."""
        self._loaded[key] = loaded

    def part(self, name: str, choice: Choice, *, apart: bool = False) -> None:
        """The records of a part, with the trees that were made of them (or none, where no tokenizer is at hand).

        apart: of a held-out part, whether a split has kept its prompts apart from training.
        """
        if not len(choice):
            return
        self._parts[name], self._findings[name], account = look(name, choice, self._draw)
        self._choices[name] = choice
        self._tokenised.take_in(account)
        if name == TRAIN:
            self._findings["pairs"] = swapped_pairs(choice)
        if name == HELD_OUT:
            self._apart = apart
        if name in (TRAIN, HELD_OUT) and {TRAIN, HELD_OUT} <= self._choices.keys():
            train, held_out = self._choices[TRAIN], self._choices[HELD_OUT]
            self._findings["prompts"] = [] if self._apart else shared_prompts(train, held_out)
            self._findings["languages"] = other_languages(self._parts[TRAIN], self._parts[HELD_OUT])

    def report(self) -> PreflightReport:
        account = self.account
        read = sum(len(one.records) + one.left_out.total() for one in self._loaded.values())
        order = ("pairs", "prompts", TRAIN, HELD_OUT, "languages")
        findings = [finding for name in order for finding in self._findings.get(name, ())]
        findings = sorted([*findings, *unasked(account, read)], key=lambda finding: finding.level != ERROR)
        sources = {
            path: Source(count, dict(loaded.formats.get(path, {})))
            for loaded in self._loaded.values()
            for path, count in loaded.counts.items()
        }
        return PreflightReport(
            read, self._cutoff_len, sources, left_out(account, read), dict(self._parts), findings
        )
