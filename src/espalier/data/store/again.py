"""Records of a choice, read from their files once more: a few to be shown, or all of them one by one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from espalier.data.read.account import Account
from espalier.data.read.sources import parts_of
from espalier.data.read.specs import DatasetSpec
from espalier.data.records import Record
from espalier.data.store.build import outcomes, refuses_some
from espalier.data.store.columns import CHUNK, Numbers
from espalier.data.store.job import BlockResult, Job
from espalier.data.store.open import ReadSettings, job_of
from espalier.data.store.reading import blocks_of, rows_at
from espalier.data.store.stack import Choice


def records_at(
    specs: Sequence[DatasetSpec], job: Job, reading: ReadSettings, choice: Choice, places: Sequence[int]
) -> list[Record]:
    """The records at `places` of a choice, in this order; their files are read up to the last of them."""
    numbers = [place if choice.picks is None else int(choice.picks[place]) for place in places]
    # Where a whole array stands on one line, its records share a place: they are told apart by their order.
    sources = {number: (choice.stack.source(number), _same_before(choice, number)) for number in numbers}
    wanted: dict[str, set[int]] = defaultdict(set)
    for source, _ in sources.values():
        path, _, line = source.rpartition(":")
        wanted[path].add(int(line))
    missing = set(sources.values())
    records: dict[tuple[str, int], Record] = {}
    for spec, store in zip(specs, choice.stack.stores, strict=True):
        own, asked = job_of(spec, job, reading), refuses_some(store)
        parts = parts_of(spec)
        for path in [spec.path] if parts is None else map(str, parts):
            if path not in wanted:
                continue
            seen: Counter[str] = Counter()
            rows = rows_at(spec, path, wanted[path], max(wanted[path]))
            for record in outcomes(own, rows, BlockResult(), rendered=asked):
                place = record.source, seen[record.source]
                seen[record.source] += 1
                if place in missing:
                    missing.remove(place)
                    records[place] = record
                if not missing:
                    break
    return [records[sources[number]] for number in numbers]


def _same_before(choice: Choice, number: int) -> int:
    """How many records right before this one stand on the same line of the same file."""
    count = 0
    place = _places(choice, np.array([number]))
    while number - count > 0:
        before = np.arange(max(number - count - CHUNK, 0), number - count)
        others = np.flatnonzero((_places(choice, before)[:, ::-1] != place).any(axis=0))
        count += int(others[0]) if len(others) else len(before)
        if len(others):
            break
    return count


def _places(choice: Choice, numbers: Numbers) -> Numbers:
    """(2, n) file and line of records."""
    return np.stack([choice.stack.of_records(name, numbers).astype(np.int64) for name in ("file", "line")])


def examples(
    specs: Sequence[DatasetSpec],
    job: Job,
    reading: ReadSettings,
    choice: Choice,
    account: Account,
    limit: int,
) -> list[Record]:
    """The first records, and the first of each cause for which something was left out or cut."""
    first = list(range(min(limit, len(choice))))
    wanted = {place for place, _ in account.first.values()}
    others: list[int] = []
    caused_by = [code for code, causes in enumerate(choice.stack.names("causes")) if causes]
    start = 0
    for numbers in choice.chunks() if wanted else ():
        (caused,) = np.nonzero(np.isin(choice.stack.of_records("causes", numbers), caused_by))
        for at in caused.tolist():
            source = choice.stack.source(int(numbers[at]))
            if source in wanted and start + at not in first:
                others.append(start + at)
            wanted.discard(source)
        start += len(numbers)
        if not wanted:
            break
    return records_at(specs, job, reading, choice, [*first, *others])


def all_records(
    specs: Sequence[DatasetSpec], job: Job, reading: ReadSettings, choice: Choice
) -> Iterator[Record]:
    """Every record of a choice as often as it was chosen, in the order of the files."""
    times = None
    if choice.picks is not None:
        times = np.bincount(choice.picks, minlength=choice.stack.records).astype(np.int32)
    first = 0
    for spec, store in zip(specs, choice.stack.stores, strict=True):
        own = job_of(spec, job, reading)
        rows = (placed for block in blocks_of(spec) for placed in block.placed())
        for at, record in enumerate(outcomes(own, rows, BlockResult(), rendered=refuses_some(store))):
            if at >= store.records:
                break
            for _ in range(1 if times is None else int(times[first + at])):
                yield record
        first += store.records
