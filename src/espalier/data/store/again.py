"""Records of a choice, read from their files once more: a few to be shown, or all of them one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from espalier.data.account import Account
from espalier.data.records import Record
from espalier.data.sources import files_of
from espalier.data.specs import DatasetSpec
from espalier.data.store.blocks import Done, Job, outcomes
from espalier.data.store.open import Reading, job_of
from espalier.data.store.reading import blocks_of, rows_at
from espalier.data.store.stack import Choice


def records_at(
    specs: Sequence[DatasetSpec], job: Job, reading: Reading, choice: Choice, places: Sequence[int]
) -> list[Record]:
    """The records at `places` of a choice, in this order; their files are read up to the last of them."""
    numbers = [place if choice.picks is None else int(choice.picks[place]) for place in places]
    wanted: dict[str, set[int]] = defaultdict(set)
    sources = {number: choice.stack.source(number) for number in numbers}
    for source in sources.values():
        path, _, line = source.rpartition(":")
        wanted[path].add(int(line))
    found: dict[str, Record] = {}
    for spec in specs:
        own = job_of(spec, job, reading)
        for path in [spec.path] if files_of(spec) is None else map(str, files_of(spec) or []):
            if path in wanted:
                rows = rows_at(spec, path, wanted[path], max(wanted[path]))
                for record in outcomes(own, rows, Done()):
                    found.setdefault(record.source, record)
    return [found[sources[number]] for number in numbers]


def examples(
    specs: Sequence[DatasetSpec], job: Job, reading: Reading, choice: Choice, account: Account, limit: int
) -> list[Record]:
    """The first records, and the first of each cause for which something was left out or cut."""
    first = list(range(min(limit, len(choice))))
    wanted = {place for place, _ in account.first.values()}
    others: list[int] = []
    start = 0
    for numbers in choice.chunks() if wanted else ():
        (caused,) = np.nonzero(choice.stack.of_records("causes", numbers))
        for at in caused.tolist():
            source = choice.stack.source(int(numbers[at]))
            if source in wanted and start + at not in first:
                others.append(start + at)
            wanted.discard(source)
        start += len(numbers)
        if not wanted:
            break
    return records_at(specs, job, reading, choice, [*first, *others])


def all_records(specs: Sequence[DatasetSpec], job: Job, reading: Reading, choice: Choice) -> Iterator[Record]:
    """Every record of a choice as often as it was chosen, in the order of the files."""
    times = None
    if choice.picks is not None:
        times = np.bincount(choice.picks, minlength=choice.stack.records).astype(np.int32)
    first = 0
    for spec, store in zip(specs, choice.stack.stores, strict=True):
        own = job_of(spec, job, reading)
        rows = (placed for block in blocks_of(spec) for placed in block.placed())
        for at, record in enumerate(outcomes(own, rows, Done())):
            if at >= store.records:
                break
            for _ in range(1 if times is None else int(times[first + at])):
                yield record
        first += store.records
