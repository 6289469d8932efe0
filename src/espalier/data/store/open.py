"""The sources of a data set as a stack of stores: found or made, their faults told at once, the order of an epoch drawn."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from espalier.data.choice.choose import Picks, drawn
from espalier.data.encode.too_long import TooLongError
from espalier.data.read.packed import PACKINGS
from espalier.data.read.sources import SHOWN, LoadReport, files_of, no_record, too_bad
from espalier.data.read.specs import DatasetSpec
from espalier.data.store.blocks import Job
from espalier.data.store.build import build, from_json
from espalier.data.store.cache import find_or_make
from espalier.data.store.key import content, description
from espalier.data.store.reading import blocks_of
from espalier.data.store.stack import Choice, Stack, Store
from espalier.disk.writing import write_whole, writing_to

_OF_A_WORKER, _AS_ASKED = 4 << 20, 1 << 20
"""Bytes of data for which another process is worth its start, and where a number of processes was asked for; fewer
than two such are done in this one."""


@dataclass(frozen=True)
class ReadSettings:
    """How the data of a run is read, whatever it is.

    Attributes:
        folder: of the stores.
        workers: at most so many processes tokenise; None: one a core.
        skip_bad: whether bad records are left out instead of stopping everything.
        rejected_path: where they are written then.
        seed: of every choice by chance.
        mix: "first" or "all" draws from the sources by their weights (see `mixing`); "concat" takes them in order.
        max_samples: the first so many of each source.
        data_split: the share of them that records of this kind get (see `mixing.takes`).
        show: told how far it is, once in a while.
    """

    folder: Path
    workers: int | None = None
    skip_bad: bool = False
    rejected_path: Path | None = None
    seed: int = 0
    mix: str = "concat"
    max_samples: int | None = None
    data_split: tuple[float, ...] | None = None
    show: Callable[[str], None] = lambda text: None


class _BadRecords(Exception):
    """A source has bad records, and was not tokenised to its end."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        super().__init__("bad records")
        self.manifest = manifest


def opened(
    specs: Sequence[DatasetSpec], job: Job, reading: ReadSettings
) -> tuple[Stack, Picks | None, LoadReport]:
    """(all records of the sources, the numbers of those that are used in their order or None for all, the account).

    Of `job` only what is the same for every source is given; `LoadReport.records` is the choice.

    Raises:
        UserError: a source is missing or empty, or nothing is left; bad records without `skip_bad`, the first ten
            of them named; records that are too long under `overlong: error`; one that the template cannot write.
    """
    loaded = LoadReport()
    stores: list[Store] = []
    manifests: list[dict[str, Any]] = []
    long: list[TooLongError] = []
    known: dict[str, str] = {}
    for spec in specs:
        hashes = content(spec, reading.folder / "files.json")
        known |= hashes
        if files_of(spec) is not None:
            loaded.hashes.update(hashes)
        faulty = not reading.skip_bad and any(m["bad"]["counts"] for m in manifests)
        try:
            store = _store(spec, job, reading, hashes, count_only=faulty)
            stores.append(store)
            manifests.append(store.manifest)
        except _BadRecords as faulty_source:
            manifests.append(faulty_source.manifest)
        except TooLongError as error:
            long.append(error)
    _check(manifests, reading.skip_bad)
    if long:
        raise _joined_long(long, sum(manifest["records"] for manifest in manifests))
    for spec, manifest in zip(specs, manifests, strict=True):
        loaded.left_out.take_in(from_json(manifest["left_out"]))
        loaded.formats.setdefault(spec.path, Counter()).update(manifest["formats"])
    order, counts = drawn(
        [store.records for store in stores], specs, reading.mix, reading.seed, loaded.left_out
    )
    for spec, count in zip(specs, counts, strict=True):
        loaded.counts[spec.path] = loaded.counts.get(spec.path, 0) + count
    if reading.skip_bad and reading.rejected_path is not None:
        _write_rejected(reading.rejected_path, stores)
    stack = Stack(stores)
    loaded.records = Choice(stack, order)  # type: ignore[assignment]
    if not sum(counts):
        raise no_record(job.kind, specs, loaded.left_out)
    return stack, order, loaded


def job_of(spec: DatasetSpec, job: Job, reading: ReadSettings) -> Job:
    """What is done with the rows of one source."""
    return replace(
        job,
        format=None if spec.format == "lines" else spec.format,
        columns=dict(spec.columns or {}),
        tags=dict(spec.tags) if spec.tags else None,
        described=spec.optional_columns,
        data_split=reading.data_split,
        seed=reading.seed,
    )


def _store(
    spec: DatasetSpec, job: Job, reading: ReadSettings, hashes: dict[str, str], *, count_only: bool
) -> Store:
    own = job_of(spec, job, reading)
    depends_on = description(spec, own, max_samples=reading.max_samples, hashes=hashes)

    def make(folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
        began = told = time.monotonic()

        def progress(records: int) -> None:
            nonlocal told
            now = time.monotonic()
            verb = "tokenised" if own.encoder else "read"
            text = f"{records:,} records of {spec.path} {verb} ({records / max(now - began, 1e-3):,.0f}/s)"
            tell(text)
            if now - told > 10:
                told = now
                reading.show(text)

        manifest = build(
            folder,
            own,
            blocks_of(spec),
            name=spec.path,
            workers=_workers(spec, own, reading.workers),
            max_samples=reading.max_samples,
            skip_bad=reading.skip_bad,
            count_only=count_only,
            progress=progress,
        )
        if count_only or (manifest["bad"]["counts"] and not reading.skip_bad):
            raise _BadRecords(manifest)
        return manifest

    return find_or_make(reading.folder, depends_on, make, reading.show)


def _check(manifests: Sequence[dict[str, Any]], skip_bad: bool) -> None:
    causes: Counter[str] = Counter()
    for manifest in manifests:
        causes.update(manifest["bad"]["counts"])
    if causes and not skip_bad:
        first = [line for manifest in manifests for line in manifest["bad"]["shown"]]
        raise too_bad(first[:SHOWN], causes, sum(manifest["records"] for manifest in manifests))


def _joined_long(errors: Sequence[TooLongError], others: int) -> TooLongError:
    """What is too long in all sources; `others`: how many records the sources have where nothing is."""
    found, *more = (error.found for error in errors)
    for later in more:
        found.take_in(later)
    return found.error(others + sum(error.records for error in errors))


def _workers(spec: DatasetSpec, job: Job, most: int | None) -> int:
    """How many processes are worth their start; 0 for none but this one."""
    files = files_of(spec)
    if files is None:
        size = _OF_A_WORKER * 2  # the rows of a hub data set lie on disk already
    else:
        packed = (*PACKINGS, ".parquet")
        size = sum(path.stat().st_size * (4 if path.suffix.lower() in packed else 1) for path in files)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = min(most or cores, size // (_AS_ASKED if most else _OF_A_WORKER))
    return wanted if wanted > 1 and _travels(job) else 0


def _travels(job: Job) -> bool:
    """Whether another process can have the job: not a tokenizer of Python code that came with a model."""
    if job.encoder is None:
        return True
    if type(job.encoder.tokenizer).__module__.split(".")[0] in ("transformers_modules", "__main__"):
        return False
    try:
        pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _write_rejected(path: Path, stores: Sequence[Store]) -> None:
    """All bad records in one file, whole or not at all; none without a bad record."""
    if not any(store.manifest["bad"]["counts"] for store in stores):
        return
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: _joined(temporary, [store.rejected for store in stores]))


def _joined(path: Path, sources: Sequence[Path]) -> None:
    with path.open("wb") as stream:
        for source in sources:
            with source.open("rb") as part:
                shutil.copyfileobj(part, stream)
