"""The preflight of one run: collects what its parts show while they are read and tokenised, and says it as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from espalier.data.preflight.compare import other_languages, shared_prompts, swapped_pairs
from espalier.data.preflight.findings import ERROR, HELD_OUT, TRAIN, Finding, left_out, unasked
from espalier.data.preflight.look import Part, look
from espalier.data.read.account import Account
from espalier.data.read.sources import LoadReport
from espalier.data.store.stack import Choice
from espalier.trees.tree import Tree


class Preflight:
    """What is known of a run's data so far; `result` may be asked at any time.

    Args:
        cutoff_len: the most tokens of a path; None where nothing is cut.
        draw: a tree as text, for errors.
    """

    def __init__(self, cutoff_len: int | None, draw: Callable[[Tree], str]) -> None:
        self._cutoff_len, self._draw = cutoff_len, draw
        self._loaded: dict[str, LoadReport] = {}
        self._parts: dict[str, Part] = {}
        self._findings: dict[str, list[Finding]] = {}
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

    def divided(self, train: Choice, held_out: Choice, *, apart: bool) -> None:
        """Records are told into training and held-out ones; `apart`: by a split that keeps prompts together."""
        self._findings["pairs"] = swapped_pairs(train)
        shared = [] if apart or not len(held_out) else shared_prompts(train, held_out)
        self._findings["prompts"] = shared

    def part(self, name: str, choice: Choice) -> None:
        """The records of a part, with the trees that were made of them (or none, where no tokenizer is at hand)."""
        if not len(choice):
            return
        facts, self._findings[name], account = look(name, choice, self._draw)
        self._tokenised.take_in(account)
        self._keep(name, facts)

    def _keep(self, part: str, facts: Part) -> None:
        self._parts[part] = facts
        if part == HELD_OUT and TRAIN in self._parts:
            self._findings["languages"] = other_languages(self._parts[TRAIN], facts)

    def result(self) -> dict[str, Any]:
        """Everything as JSON."""
        account = self.account
        read = sum(len(one.records) + one.left_out.total() for one in self._loaded.values())
        findings = [*(f for found in self._findings.values() for f in found), *unasked(account, read)]
        findings.sort(key=lambda finding: finding.level != ERROR)
        return {
            "read": read,
            "cutoff_len": self._cutoff_len,
            "sources": {
                path: {"records": count, "formats": dict(loaded.formats.get(path, {}))}
                for loaded in self._loaded.values()
                for path, count in loaded.counts.items()
            },
            "left_out": left_out(account, read),
            "parts": {name: asdict(part) for name, part in self._parts.items()},
            "findings": [asdict(finding) for finding in findings],
        }
