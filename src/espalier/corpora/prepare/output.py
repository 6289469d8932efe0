"""Prepared records -> files: OUT (train), OUT.dev, what was left out, and a report as JSON and for people.

All files are written under temporary names and renamed together at the end, so a run that is stopped leaves
either everything or nothing. Memory does not grow with the corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from espalier.corpora.made import DEV, PARTS, TRAIN, CorpusRecord, Division, Omission
from espalier.data.read.account import Account
from espalier.disk.lock import owned
from espalier.disk.temporary import remove_left, temporary_name
from espalier.disk.writing import disk_error, is_refusal, writing_to
from espalier.errors import UserError

SUFFIXES = (".jsonl",)
_SHOWN = 100  # characters of what is left out


@dataclass(frozen=True)
class Places:
    """Where the files of one preparation lie; all names follow from the file for train.

    >>> Places(Path("poems.jsonl")).dev.name
    'poems.dev.jsonl'
    """

    train: Path

    def __post_init__(self) -> None:
        if not self.train.name.endswith(SUFFIXES):
            raise UserError(f"--out {self.train}: wanted a name that ends with {' or '.join(SUFFIXES)}")

    def named(self, what: str) -> Path:
        """The neighbour of the train file called after `what` ("dev.jsonl")."""
        return self.train.with_name(f"{self.train.name.removesuffix('.jsonl')}.{what}")

    @property
    def dev(self) -> Path:
        return self.named("dev.jsonl")

    @property
    def left_out(self) -> Path:
        return self.named("left_out.jsonl")

    @property
    def report(self) -> Path:
        return self.named("report.json")

    @property
    def text(self) -> Path:
        return self.named("report.md")

    @property
    def all(self) -> tuple[Path, ...]:
        return self.train, self.dev, self.left_out, self.report, self.text

    def check_free(self, about: dict[str, Any]) -> None:
        """Raises UserError where files stand here that are not an earlier preparation of the same input.

        Args:
            about: ``source`` and ``input`` of this preparation, as its report says them.
        """
        there = next((path for path in self.all if path.exists()), None)
        made = _made_from(self.report)
        if there is None or (made is not None and made == _made(about)):
            return
        origin = "was not made by such a command" if made is None else f"was made from {made[1]} as {made[0]}"
        raise UserError(
            f"{there}: exists, and {origin}; it is not overwritten unasked. Choose another --out, or say --force."
        )


@dataclass
class Tally:
    """Counts that grow with the kinds of things counted, never with their number."""

    records: Counter[str] = field(default_factory=Counter)
    groups: dict[str, Counter[str]] = field(default_factory=lambda: {part: Counter() for part in PARTS})
    answers: Counter[int] = field(default_factory=Counter)
    characters: Counter[int] = field(default_factory=Counter)
    left_out: Account = field(default_factory=Account)

    def add(self, made: CorpusRecord, part: str, line: str) -> None:
        self.records[part] += 1
        if made.group:
            self.groups[part][made.group] += 1
        answers = made.row.get("answers")
        if isinstance(answers, list):
            self.answers[len(answers)] += 1
        self.characters[1 << len(line).bit_length()] += 1

    def as_json(self) -> dict[str, Any]:
        """For the report; `characters` counts the records whose line is shorter than each bound."""
        return {
            "records": {part: self.records[part] for part in PARTS},
            "groups": {part: dict(counts.most_common()) for part, counts in self.groups.items()},
            "answers_per_record": dict(sorted(self.answers.items())),
            "characters_below": dict(sorted(self.characters.items())),
            "left_out": dict(self.left_out.most_common()),
            "first_left_out": {cause: self.first(cause) for cause, _ in self.left_out.most_common()},
        }

    def first(self, cause: str) -> str:
        """Where something was left out for this cause first, and why, where that is known."""
        place, reason = self.left_out.first[cause]
        return f"{place}: {reason}" if reason else place


def write_prepared(
    found: Iterable[CorpusRecord | Omission],
    out: Path | None,
    division: Division,
    about: dict[str, Any],
    accounts: dict[str, Any],
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Writes everything and returns the report: `about` (source, seed, …), the numbers, `accounts` of the steps.

    Without `out` only the report is made. Raises `UserError` where nothing at all became a record, with the causes, and
    where something else stands at `out` (without `force`); no file is written then.
    """
    tally = Tally()
    places = Places(out) if out else None
    with _alone(places), Together() as files:
        if places and not force:
            places.check_free(about)
        streams: dict[str, TextIO] = {}
        if places:
            streams = {
                TRAIN: files.open(places.train),
                DEV: files.open(places.dev),
                "": files.open(places.left_out),
            }
        for thing in found:
            if isinstance(thing, Omission):
                tally.left_out.add(thing.cause, thing.source, thing.reason)
                part, row = "", {"source": thing.source, "cause": thing.cause, "text": thing.text[:_SHOWN]}
                row |= {"reason": thing.reason} if thing.reason else {}
                line = json.dumps(row, ensure_ascii=False)
            else:
                part = thing.part or division.part(thing.key)
                line = json.dumps(thing.row, ensure_ascii=False, default=str)
                tally.add(thing, part, line)
            if streams:
                streams[part].write(line + "\n")
        if not tally.records:
            causes = [
                f"{count} {cause}, the first at {tally.first(cause)}"
                for cause, count in tally.left_out.most_common(5)
            ]
            raise UserError(
                f"{about.get('input', out)}: not one record came out ({'; '.join(causes) or 'nothing was found'}); check "
                "that this is the right folder and source"
            )
        report = {**about, **tally.as_json(), **accounts}
        if places:
            files.open(places.report).write(json.dumps(report, ensure_ascii=False, indent=2) + "\n")
            files.open(places.text).write(as_markdown(report))
    return report


def _made(about: dict[str, Any]) -> tuple[str, Path]:
    return str(about["source"]), Path(about["input"]).resolve()


def _made_from(report: Path) -> tuple[str, Path] | None:
    """The source and the input of the preparation whose report this is; None for anything else."""
    try:
        return _made(json.loads(report.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _alone(places: Places | None) -> Iterator[None]:
    """No other preparation writes the same files meanwhile, and what the disk refuses is one message."""
    if places is None:
        yield
        return
    train = places.train
    with owned(train.with_name(f".{train.name}.lock"), train, "choose another --out"):
        for path in places.all:
            remove_left(path.parent, path.name)
        try:
            yield
        except OSError as error:  # of what is read, too; only a write meets these
            if is_refusal(error):
                raise disk_error(train, error) from error
            raise


class Together:
    """Files that appear together when the `with` ends well, and not at all when it does not."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._paths: list[tuple[Path, Path]] = []

    def __enter__(self) -> Together:
        return self

    def open(self, path: Path) -> TextIO:
        partial = temporary_name(path)
        with writing_to(path):
            stream = self._stack.enter_context(partial.open("w", encoding="utf-8", newline="\n"))
        self._paths.append((partial, path))
        return stream

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        written = False
        try:
            self._stack.close()  # what is still in memory is written here, and a full disk refuses it here
            for partial, path in self._paths if kind is None else ():
                partial.replace(path)
            written = kind is None
        finally:
            for partial, _ in () if written else self._paths:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)


def as_markdown(report: dict[str, Any]) -> str:
    """The report for a person: what came in, what was left out and why."""
    lines = [f"# Prepared: {report.get('source', '')}", ""]
    plain = {key: value for key, value in report.items() if not isinstance(value, dict)}
    lines += [f"- {key}: {value}" for key, value in plain.items()]
    for key, value in report.items():
        if isinstance(value, dict) and value:
            lines += ["", f"## {key.replace('_', ' ')}", ""]
            lines += _table(value)
    return "\n".join(lines) + "\n"


def _table(value: dict[Any, Any]) -> list[str]:
    numbers, examples = _flat(value, "")
    rows = [f"| {name} | {number} |" for name, number in numbers]
    table = ["| | number |", "|---|---|", *rows] if rows else []
    return [*table, *(["", *(f"- {line}" for line in examples)] if examples else [])]


def _flat(value: dict[Any, Any], before: str) -> tuple[list[tuple[str, Any]], list[str]]:
    """Numbers by their path of names, and examples as lines."""
    numbers: list[tuple[str, Any]] = []
    examples: list[str] = []
    for name, inner in value.items():
        path = f"{before}{name}"
        if isinstance(inner, dict):
            deeper = _flat(inner, f"{path}: ")
            numbers += deeper[0]
            examples += deeper[1]
        elif isinstance(inner, list):
            for example in inner:
                shown = ", ".join(f"{key}: {str(text)[:_SHOWN]}" for key, text in example.items())
                examples.append(" ".join(f"{before}{shown}".split()))
        else:
            numbers.append((path, inner))
    return numbers, examples
