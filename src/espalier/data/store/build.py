"""The rows of a source, in blocks, in one or several processes, into the columns of a folder.

`work` is pure, so any process may do any block.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from espalier.data.choice.mixing import takes
from espalier.data.encode.prompts import refusal
from espalier.data.encode.said import RefusedRecordError
from espalier.data.encode.too_long import TooLong, TooLongError
from espalier.data.read.account import Account
from espalier.data.read.dataset_info import as_described
from espalier.data.read.lines import Block, Placed
from espalier.data.read.rows import parse_row
from espalier.data.records import BadRecord, LeftOut, Record
from espalier.data.store.columns import REJECTED, ColumnWriter, Numbers, Store
from espalier.data.store.crew import BlockTask, Crew
from espalier.data.store.job import BlockResult, Job
from espalier.data.store.table import Table, prompt_key
from espalier.errors import UserError

_SHOWN = 10
REFUSED_BY_TEMPLATE = "refused by the template"


def build(
    folder: Path,
    job: Job,
    blocks: Iterator[Block],
    *,
    name: str,
    workers: int = 0,
    max_samples: int | None = None,
    tokenise: Literal["all", "until bad", "none"] = "all",
    progress: Callable[[int], None] = lambda records: None,
) -> dict[str, Any]:
    """Writes the columns and returns what is known beside them (the manifest, without what it depends on).

    Args:
        folder: exists and is empty.
        name: of the source, for the account.
        workers: how many other processes tokenise; 0 does everything in this one.
        max_samples: at most so many good records; the others are counted.
        tokenise: "until bad" stops tokenising at the first bad record, and with "none" nothing is tokenised; the rest is
            only read, to say all that is bad.
        progress: told after each block how many records are done.

    Raises:
        TooLongError: records are too long under `overlong: error`, and none is bad.
        UserError: a file cannot be read, or a record cannot be encoded.
    """
    store = _Building(folder, job, name, max_samples)
    stopped = tokenise == "none"
    long: TooLong | None = None

    def tasks() -> Iterator[BlockTask]:
        for block in blocks:
            yield block, store.left, not stopped

    with store, ExitStack() as stack:
        results: Iterator[tuple[BlockTask, BlockResult]]
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
            stopped = stopped or (bool(result.bad) and tokenise != "all")
            if result.too_long is not None:
                long = result.too_long if long is None else long
                if long is not result.too_long:
                    long.take_in(result.too_long)
            store.add(result, tokenised=not stopped and long is None)
            progress(store.records)
    if long is not None and not stopped:
        raise long.error(store.records)
    return store.manifest()


def work(job: Job, block: Block, most: int | None = None, *, tokenise: bool = True) -> BlockResult:
    """The block's columns; of at most `most` good records. Without `tokenise` only counted, for their faults.

    A record that the template refuses is a bad one. Each is looked for only once one is there: rendering takes time.
    """
    try:
        return _worked(job, block, most, tokenise=tokenise)
    except RefusedRecordError:
        try:
            return _worked(job, block, most, tokenise=tokenise, rendered=True)
        except RefusedRecordError as error:  # of what is left of a record that was too long
            return BlockResult(error=str(error))


def _worked(
    job: Job, block: Block, most: int | None, *, tokenise: bool, rendered: bool = False
) -> BlockResult:
    result = BlockResult()
    records: list[Record] = []
    try:
        for record in outcomes(job, block.placed(), result, rendered=rendered):
            if most is None or len(records) < most:
                records.append(record)
            else:
                result.beyond += 1
        result.good = len(records)
        if tokenise:
            Table(job, result).fill(records)
    except TooLongError as error:
        result.too_long = error.found
    except RefusedRecordError:
        raise
    except UserError as error:
        return BlockResult(error=str(error))
    return result


def outcomes(
    job: Job, rows: Iterable[Placed], result: BlockResult, *, rendered: bool = False
) -> Iterator[Record]:
    """The good records of rows; everything else is counted in `result`. `rendered`: the template is asked about each."""
    for place, row, raw in rows:
        if isinstance(row, BadRecord):
            outcome: Any = row
        else:
            columns = job.columns
            if job.described:
                row, columns = as_described(row, columns, job.tags, job.kind), {}
            outcome = parse_row(
                row, place, job.kind, format=job.format, columns=columns, formats=result.formats
            )
        if rendered and isinstance(outcome, Record) and job.encoder is not None:
            reason = refusal(outcome, job.encoder)
            outcome = outcome if reason is None else BadRecord(place, REFUSED_BY_TEMPLATE, reason)
        if isinstance(outcome, BadRecord):
            result.bad.append((outcome, raw if isinstance(row, BadRecord) else row))
            result.left_out.add(f"bad record: {outcome.cause}", outcome.source, outcome.reason)
        elif isinstance(outcome, LeftOut):
            result.left_out.add(outcome.cause, outcome.source)
        elif job.data_split and not takes(job.data_split, job.kind, prompt_key(outcome), job.seed):
            shares = ",".join(f"{share:g}" for share in job.data_split)
            result.left_out[f"data_split {shares}: another stage's"] += 1
        else:
            yield outcome


def refuses_some(store: Store) -> bool:
    """Whether records of a source were left out because the template refuses them."""
    return REFUSED_BY_TEMPLATE in store.manifest["bad"]["counts"]


class _Building:
    """A store that grows."""

    def __init__(self, folder: Path, job: Job, name: str, max_samples: int | None) -> None:
        self._job, self._name, self._max = job, name, max_samples
        starts = {"first_tree": "<i8", **{f"{part}.start": "<i8" for part in job.parts}}
        self._types = {**job.record_columns, **job.tree_columns, **job.parts, **starts}
        self._writer = ColumnWriter(folder, self._types)
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
