"""The rows of a source, in blocks, through `blocks.work` in one or several processes, into the columns of a folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from espalier.data.encode.too_long import TooLong
from espalier.data.read.account import Account
from espalier.data.read.lines import Block
from espalier.data.store.blocks import BlockResult, Job, work
from espalier.data.store.columns import Numbers, Writer
from espalier.data.store.crew import Crew, Task
from espalier.errors import UserError

MANIFEST, REJECTED = "manifest.json", "rejected.jsonl"
_SHOWN = 10


def build(
    folder: Path,
    job: Job,
    blocks: Iterator[Block],
    *,
    name: str,
    workers: int = 0,
    max_samples: int | None = None,
    skip_bad: bool = True,
    count_only: bool = False,
    progress: Callable[[int], None] = lambda records: None,
) -> dict[str, Any]:
    """Writes the columns and returns what is known beside them (the manifest, without what it depends on).

    Args:
        folder: exists and is empty.
        name: of the source, for the account.
        workers: how many other processes tokenise; 0 does everything in this one.
        max_samples: at most so many good records; the others are counted.
        skip_bad: False stops tokenising at the first bad record; the rest is only read, to say all that is bad.
        count_only: nothing is tokenised.
        progress: told how many records are result, after each block.

    Raises:
        TooLongError: records are too long under `overlong: error`, and none is bad.
        UserError: a file cannot be read, or a record cannot be encoded.
    """
    store = _Building(folder, job, name, max_samples)
    stopped = count_only
    long: TooLong | None = None

    def tasks() -> Iterator[Task]:
        for block in blocks:
            yield block, store.left, not stopped

    with store, ExitStack() as stack:
        results: Iterator[tuple[Task, BlockResult]]
        if workers:
            results = stack.enter_context(Crew(job, workers)).results(tasks())
        else:
            results = ((task, work(job, task[0], task[1], tokenise=task[2])) for task in tasks())
        for (block, _, _), result in results:
            if (result.error is not None or result.too_long is not None) and store.left is not None:
                # What stopped it may stand behind the last that is wanted.
                result = work(job, block, store.left, tokenise=not stopped)
            if result.error is not None:
                raise UserError(result.error)
            stopped = stopped or (bool(result.bad) and not skip_bad)
            if result.too_long is not None:
                long = result.too_long if long is None else long
                if long is not result.too_long:
                    long.take_in(result.too_long)
            store.add(result, tokenised=not stopped and long is None)
            progress(store.records)
    if long is not None and not stopped:
        raise long.error(store.records)
    return store.manifest()


class _Building:
    """A store that grows."""

    def __init__(self, folder: Path, job: Job, name: str, max_samples: int | None) -> None:
        self._job, self._name, self._max = job, name, max_samples
        starts = {"first_tree": "<i8", **{f"{part}.start": "<i8" for part in job.parts}}
        self._types = {**job.record_columns, **job.tree_columns, **job.parts, **starts}
        self._writer = Writer(folder, self._types)
        for start in starts:
            self._writer.add(start, np.zeros(1, np.int64))
        self._ends = dict.fromkeys(starts, 0)
        self._names: dict[str, dict[Any, int]] = {"file": {}, "role": {}, "causes": {}}
        # Half a character, which UTF-8 cannot hold, is written as JSON writes it: \ud83d.
        self._rejected: IO[str] = (folder / REJECTED).open("w", encoding="utf-8", errors="backslashreplace")
        self.records = self._trees = self._beyond = 0
        self._formats: Counter[str] = Counter()
        self._left_out, self._bad = Account(), Account()
        self._first_bad: list[str] = []
        self._extras = ""

    @property
    def left(self) -> int | None:
        """How many records are wanted yet; None: all."""
        return None if self._max is None else self._max - self.records

    def add(self, result: BlockResult, *, tokenised: bool) -> None:
        """A block's results; `tokenised` False: it has no columns, and is only counted."""
        self._formats.update(result.formats)
        self._left_out.take_in(result.left_out)
        for bad, row in result.bad:
            self._bad.add(bad.cause, bad.source, bad.reason)
            if len(self._first_bad) < _SHOWN:
                self._first_bad.append(str(bad))
            line = {"source": bad.source, "cause": bad.cause, "reason": bad.reason, "row": row}
            self._rejected.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        good = result.good if self.left is None else min(result.good, self.left)
        self._beyond += result.beyond + result.good - good
        if tokenised:
            self._append(result, good)
        self.records += good

    def _append(self, result: BlockResult, good: int) -> None:
        trees = int(result.trees_of[:good].sum())
        self._start("first_tree", result.trees_of[:good])
        for part in self._job.parts:
            sizes = result.columns[f"{part}.size"][:trees]
            self._start(f"{part}.start", sizes)
            self._writer.add(part, result.columns[part][: int(sizes.sum())])
        for column in self._job.record_columns:
            self._writer.add(column, self._renamed(column, result.columns[column][:good], result))
        for column in self._job.tree_columns:
            if column != "record":
                self._writer.add(column, result.columns[column][:trees])
        if self._job.tree_columns:
            self._writer.add("record", np.repeat(np.arange(good) + self.records, result.trees_of[:good]))
        self._trees += trees
        self._extras = self._extras or result.extras

    def _start(self, name: str, sizes: Numbers) -> None:
        ends = np.cumsum(sizes, dtype=np.int64) + self._ends[name]
        self._writer.add(name, ends)
        if len(ends):
            self._ends[name] = int(ends[-1])

    def _renamed(self, column: str, values: Numbers, result: BlockResult) -> Numbers:
        """A block's own numbers for names as the store's."""
        known = self._names.get(column)
        if known is None:
            return values
        ours = [known.setdefault(value, len(known)) for value in result.names[column]]
        return np.array(ours, values.dtype)[values] if ours else values

    def manifest(self) -> dict[str, Any]:
        if self._beyond:
            self._left_out[f"max_samples {self._max} of {self._name}"] += self._beyond
        return {
            "records": self.records,
            "trees": self._trees,
            "types": self._types,
            "lengths": self._writer.lengths,
            "sums": self._writer.sums,
            "names": {name: list(numbers) for name, numbers in self._names.items()},
            "extras": self._extras,
            "formats": dict(self._formats),
            "left_out": _as_json(self._left_out),
            "bad": {**_as_json(self._bad), "shown": self._first_bad},
        }

    def __enter__(self) -> _Building:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._rejected.close()
        self._writer.__exit__(kind)


def _as_json(account: Account) -> dict[str, Any]:
    return {"counts": dict(account), "first": {cause: list(first) for cause, first in account.first.items()}}


def from_json(counts: dict[str, Any]) -> Account:
    """An account as a manifest holds it."""
    account = Account(counts["counts"])
    account.first = {cause: (place, reason) for cause, (place, reason) in counts["first"].items()}
    return account
