"""What the config calls `dataset` -> checked records: paths, globs, folders, hub ids; mixing.

Every record that does not come through is counted by its cause in `LoadReport.left_out`. Bad records are all
collected before anything is said: one error names the first ten places, how many there are, and the remedy.
How a file is read is in `files`, what a row means in `formats`.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espalier.data.read.account import Account
from espalier.data.read.files import SUFFIXES, data_files, read_rows, visible_files
from espalier.data.read.lines import Placed
from espalier.data.read.own_reader import read_with
from espalier.data.read.specs import DatasetSpec
from espalier.errors import UserError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHOWN = 10
"""How many bad records an error names."""


@dataclass
class LoadReport:
    """Records in the order of their sources, and the account of everything else."""

    records: Sequence[Any] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Records that came in, by the spec's path (after weighing)."""
    left_out: Account = field(default_factory=Account)
    """How many rows did not become records, by cause."""
    formats: dict[str, Counter[str]] = field(default_factory=dict)
    """In which formats the rows were read, by the spec's path."""
    hashes: dict[str, str] = field(default_factory=dict)
    """File -> its sha256, for the run's summary."""


def no_record(kind: str, specs: Sequence[DatasetSpec], left_out: Account) -> UserError:
    causes = ", ".join(f"{count} {cause}" for cause, count in left_out.items()) or "the sources are empty"
    return UserError(
        f"no {kind} record in {', '.join(spec.path for spec in specs)} ({causes}); wanted at least one"
    )


def too_bad(first: Sequence[str], causes: Counter[str], good: int) -> UserError:
    """The error about bad records: the `first` of them, how many by cause, and what to do."""
    bad = causes.total()
    lines = list(first[:SHOWN])
    if bad > SHOWN:
        lines.append(f"… and {bad - SHOWN} more")
    counts = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
    lines.append(
        f"{bad} bad record{'s' if bad > 1 else ''} ({counts}), {good} good; repair them, or go on without "
        "them: --skip-bad (skip_bad: true) writes them to rejected.jsonl"
    )
    return UserError("\n".join(lines))


def rows_of(spec: DatasetSpec, hashes: dict[str, str]) -> Iterator[Placed]:
    """The rows behind a spec in order, unparsed; each file's sha256 is added to `hashes`."""
    parts = parts_of(spec)
    if parts is None:
        yield from hub_rows(spec)
        return
    for path in parts:
        if path.is_file() and str(path) not in hashes:
            with path.open("rb") as stream:
                hashes[str(path)] = hashlib.file_digest(stream, "sha256").hexdigest()
        yield from part_rows(spec, path)


def parts_of(spec: DatasetSpec) -> list[Path] | None:
    """What is read one after the other: the files behind a spec, or the folder that its own reader is given."""
    path = Path(spec.path).expanduser()
    return [path] if spec.reader is not None and path.is_dir() else files_of(spec)


def part_rows(spec: DatasetSpec, path: Path) -> Iterator[Placed]:
    """The rows of one of `parts_of`."""
    if spec.reader is not None:
        return read_with(spec.reader, path)
    return read_rows(path, lines=spec.format == "lines")


def files_of(spec: DatasetSpec) -> list[Path] | None:
    """The files behind a spec's path in a fixed order; None for a hub id. Raises `UserError` when there are none."""
    path = Path(spec.path).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return data_files(path) if spec.reader is None else visible_files(path)
    if glob.has_magic(spec.path):
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207
        if not files:
            raise UserError(
                f"{spec.path}: no file matches; {_nearby(Path(glob.escape(str(path.parent))), path.name)}"
            )
        return files
    if (
        spec.reader is None
        and _HUB_ID.fullmatch(spec.path)
        and not spec.path.lower().endswith(SUFFIXES)
        and not path.parent.exists()
    ):
        return None
    raise UserError(f"{spec.path}: no such file or folder; {_nearby(path.parent, path.name)}")


def _nearby(folder: Path, name: str) -> str:
    """What a missing path's folder holds instead."""
    if not folder.is_dir():
        while not folder.is_dir():
            folder, name = folder.parent, folder.name
        return f"there is {folder.resolve()}, but no {name} in it; check the path"
    names = sorted(entry.name for entry in folder.iterdir())
    near = (
        difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        or [n for n in names if n.endswith(SUFFIXES)][:5]
    )
    if not near:
        return f"{folder.resolve()} holds no data file; check the path"
    return f"near it in {folder.resolve()}: {', '.join(near)}"


def hub_rows(spec: DatasetSpec) -> Iterator[Placed]:
    """The rows of a hub data set."""
    for number, row in enumerate(hub_dataset(spec), start=1):
        yield f"{spec.path}:{number}", dict(row), ""


def hub_dataset(spec: DatasetSpec) -> Any:
    """What the `datasets` library gives for a hub id; raises `UserError` where it cannot be had."""
    import datasets

    try:
        return datasets.load_dataset(
            spec.path, *([spec.subset] if spec.subset else []), split=spec.split or "train"
        )
    except Exception as error:  # the hub's client raises dozens of kinds, all of them the user's to solve
        raise UserError(
            f"{spec.path}: no such file here, and as a hub dataset it cannot be had "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            "check the name and the network, or give the path of a file"
        ) from None
