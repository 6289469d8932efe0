"""The preflight of one run: collects what its parts show while they are read and tokenised, and says it as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from espalier.data.account import Account
from espalier.data.clean.view import texts_of
from espalier.data.preflight.compare import other_languages, shared_prompts, swapped_pairs
from espalier.data.preflight.findings import ERROR, HELD_OUT, TRAIN, Finding, left_out, unasked
from espalier.data.preflight.look import Part, facts, look
from espalier.data.records import Record
from espalier.data.sources import Loaded
from espalier.data.tokenise import EncodedPrompt
from espalier.trees.tree import Tree


class Preflight:
    """What is known of a run's data so far; `result` may be asked at any time.

    Args:
        cutoff_len: the most tokens of a path; None where nothing is cut.
        draw: a tree as text, for errors.
    """

    def __init__(self, cutoff_len: int | None, draw: Callable[[Tree], str]) -> None:
        self._cutoff_len, self._draw = cutoff_len, draw
        self._loaded: dict[str, Loaded] = {}
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

    def read(self, key: str, loaded: Loaded) -> None:
        """The files behind an option have become records (again, when they are wanted as another kind)."""
        self._loaded[key] = loaded

    def divided(self, train: Sequence[Record], held_out: Sequence[Record], *, apart: bool) -> None:
        """Records are told into training and held-out ones; `apart`: by a split that keeps prompts together."""
        self._findings["pairs"] = swapped_pairs(train)
        self._findings["prompts"] = [] if apart else shared_prompts(train, held_out)

    def encoded(
        self,
        part: str,
        records: Sequence[Record],
        trees: Sequence[Tree],
        account: Account,
        stop: Collection[int],
    ) -> None:
        """Records have become trees; `stop` are the ids that end an answer."""
        if not records:
            return
        self._tokenised.take_in(account)
        found, self._findings[part] = look(
            part, records, trees, stop=stop, cutoff_len=self._cutoff_len or sys.maxsize, draw=self._draw
        )
        self._keep(part, found)

    def prompts(
        self, part: str, records: Sequence[Record], encoded: Sequence[EncodedPrompt], account: Account
    ) -> None:
        """Prompts have become tokens to generate from."""
        if not records:
            return
        self._tokenised.take_in(account)
        lengths = np.array([len(prompt.tokens) for prompt in encoded], np.int64)
        self._keep(part, facts(records, lengths, int(lengths.sum()), 0))

    def unencoded(self, part: str, records: Sequence[Record]) -> None:
        """Records without a tokenizer: their lengths are counted in characters."""
        lengths = np.array([sum(map(len, texts_of(record))) for record in records], np.int64)
        self._keep(part, facts(records, lengths, int(lengths.sum()), 0, "characters"))

    def _keep(self, part: str, found: Part) -> None:
        self._parts[part] = found
        if part == HELD_OUT and TRAIN in self._parts:
            self._findings["languages"] = other_languages(self._parts[TRAIN], found)

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
