"""What an exam has found so far, on the disk after each block, so that a stop loses nothing.

``NAME.jsonl.partial`` grows by whole blocks; ``NAME.state.json`` says how far it counts and what it adds up to. Both
become ``NAME.jsonl`` at the end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from espalier.disk.reading import object_or_nothing
from espalier.disk.writing import writing_to
from espalier.engine import files
from espalier.exam.answers.scorer import Cost
from espalier.exam.numbers.scores import Tally
from espalier.maths.ratio import Moments

STATE = {"settings", "bytes", "tally", "cost", "seconds", "prefixes", "shortened"}
"""The keys of a state."""


@dataclass
class Journal:
    """The lines of a task so far, and their sums.

    Attributes:
        tally: numbers of the questions that are done.
        cost, seconds: of them.
        prefixes: texts before questions, by key.
        left_out: rows that are no questions, by cause.
        shortened: questions that did not fit into the context, by what was done.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]
    tally: Tally = field(default_factory=Tally)
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    prefixes: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    shortened: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def _partial(self) -> Path:
        return self.folder / f"{self.name}.jsonl.partial"

    @property
    def _state(self) -> Path:
        return self.folder / f"{self.name}.state.json"

    @classmethod
    def open(cls, folder: Path, name: str, settings: Mapping[str, Any]) -> Journal:
        """What an earlier run with the same settings has left, or nothing."""
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
        journal = cls(folder, name, json.loads(json.dumps(settings, default=str)))
        if not (journal._state.is_file() and journal._partial.is_file()):
            return journal
        state = _read(journal._state)
        if state.get("settings") != journal.settings or journal._partial.stat().st_size < state["bytes"]:
            return journal
        journal.cost, journal.seconds, journal.bytes = Cost(**state["cost"]), state["seconds"], state["bytes"]
        journal.prefixes, journal.shortened = state["prefixes"], Counter(state["shortened"])
        journal.tally = Tally(
            {g: {k: Moments(**m) for k, m in mine.items()} for g, mine in state["tally"]["metrics"].items()},
            Moments(**state["tally"]["blind"]),
            Counter(state["tally"]["golds"]),
            n=state["tally"]["n"],
        )
        return journal

    def shorten(self, fewer: int, cut: int) -> None:
        """Count a question that did not fit: asked with fewer examples, or without its first tokens."""
        self.shortened.update({"fewer_shots": int(fewer > 0), "cut": int(cut > 0)})
        self.shortened = +self.shortened

    def add(self, lines: Sequence[Mapping[str, Any]], cost: Cost, seconds: float) -> None:
        """Write a block's lines, then the state that counts them."""
        self.cost.computed += cost.computed
        self.cost.unshared += cost.unshared
        self.seconds += seconds
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        with writing_to(self._partial), self._partial.open("r+b" if self.bytes else "wb") as stream:
            stream.seek(self.bytes)
            stream.write(text)
            stream.truncate()
        self.bytes += len(text)
        files.write_json(
            self._state,
            {
                "settings": self.settings,
                "bytes": self.bytes,
                "tally": {
                    "metrics": {
                        g: {k: asdict(m) for k, m in mine.items()} for g, mine in self.tally.metrics.items()
                    },
                    "blind": asdict(self.tally.blind),
                    "golds": dict(self.tally.golds),
                    "n": self.tally.n,
                },
                "cost": asdict(self.cost),
                "seconds": self.seconds,
                "prefixes": self.prefixes,
                "shortened": dict(self.shortened),
            },
        )

    def finish(self) -> None:
        """The lines get their final name."""
        with writing_to(self.folder / f"{self.name}.jsonl"):
            self._partial.replace(self.folder / f"{self.name}.jsonl")
            self._state.unlink()


def _read(path: Path) -> dict[str, Any]:
    """A state that was written whole; {} where it has been damaged since, and the task begins anew."""
    state = object_or_nothing(path)
    return state if state.keys() >= STATE else {}
