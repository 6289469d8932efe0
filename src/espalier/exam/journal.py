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
from espalier.errors import UserError
from espalier.exam.answers.scorer import Cost
from espalier.exam.numbers.scores import Tally
from espalier.exam.task import Overlong
from espalier.maths.ratio import Moments

STATE = {"settings", "bytes", "tally", "cost", "seconds", "prefixes", "shortened", "done", "first"}
"""The keys of a state."""


@dataclass(frozen=True)
class Misfit:
    """How a question does not fit into the model's context; all numbers are 0 where it does.

    Attributes:
        id, source: which one.
        fewer: solved examples that went.
        cut: tokens that its beginning lost.
        lost: tokens that its candidates lost at their end.
        excess: tokens by which it does not fit at all; it is not asked.
    """

    id: str
    source: str
    fewer: int = 0
    cut: int = 0
    lost: int = 0
    excess: int = 0

    @property
    def place(self) -> str:
        return f"{self.id} ({self.source})"

    def kinds(self) -> dict[str, int]:
        """What it counts as, and the solved examples that went."""
        counts = {
            "fewer_shots": int(self.fewer > 0),
            "dropped_shots": self.fewer,
            "cut": int(self.cut > 0),
            "candidates_cut": int(self.lost > 0),
            "too_long": int(self.excess > 0),
        }
        return {kind: count for kind, count in counts.items() if count}

    def line(self) -> dict[str, Any]:
        """The line of a question that is left out."""
        return {"id": self.id, "source": self.source, "left_out": "longer than the model's context"}


@dataclass
class Journal:
    """The lines of a task so far, and their sums.

    Attributes:
        tally: numbers of the questions that are done.
        cost, seconds: of them.
        prefixes: texts before questions, by key.
        left_out: rows that are no questions, by cause.
        shortened: questions that did not fit into the context, by what was done; answers, by what was not whole.
        done: questions that have a line.
        first: the first question that was left out because it does not fit.
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

    done: int = 0
    first: str = ""
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
        journal.done, journal.first = state["done"], state["first"]
        journal.tally = Tally(
            {g: {k: Moments(**m) for k, m in mine.items()} for g, mine in state["tally"]["metrics"].items()},
            Moments(**state["tally"]["blind"]),
            Counter(state["tally"]["golds"]),
            n=state["tally"]["n"],
            unjudged=state["tally"]["unjudged"],
        )
        return journal

    def leaves_out(self, misfit: Misfit, overlong: Overlong) -> bool:
        """Count a question by how it did not fit, if it did not; whether it is left out.

        Raises:
            UserError: it did not fit, and `overlong` is "error".
        """
        kinds = misfit.kinds()
        if kinds and overlong == "error":
            raise UserError(
                f"{self.name}: question {misfit.place} does not fit into the model's context. Take fewer --shots or a "
                "model with a longer context (--rope-scaling), or see --overlong trim and leave_out."
            )
        left_out = misfit.excess > 0 or (misfit.cut > 0 and overlong == "leave_out")
        if left_out:
            self.first = self.first or misfit.place
            kinds = {"too_long": 1}
        self.shortened.update(kinds)
        return left_out

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
        self.done += len(lines)
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
                    "unjudged": self.tally.unjudged,
                },
                "cost": asdict(self.cost),
                "seconds": self.seconds,
                "prefixes": self.prefixes,
                "shortened": dict(self.shortened),
                "done": self.done,
                "first": self.first,
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
