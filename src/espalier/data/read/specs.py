"""What the config calls `dataset`, entry by entry: a path, or a mapping that says how to read it.

Nothing is opened here but LLaMA-Factory's table of names; `sources` reads what the specs name.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from espalier.data.read.dataset_info import looked_up
from espalier.data.read.formats import FORMATS
from espalier.data.read.own_reader import check_reader
from espalier.errors import UserError

_KEYS = {"type": "format", "name": "subset", "file": "path", "data_files": "path"}
"""axolotl's keys of a `datasets` entry -> ours."""
_FORMATS = {"chat_template": None, "completion": "text", "pretrain": "text"}
"""axolotl's types that have another name here; None: found by the columns."""


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of `dataset`.

    >>> DatasetSpec("data/*.jsonl", format="alpaca", weight=0.5).weight
    0.5
    """

    path: str
    """A file, a folder (read with all that is below it but what is hidden), a glob, or a hub id `owner/name`."""
    format: str | None = None
    """One of `FORMATS`, or `lines` for a .txt file with one document a line; None: found by the columns."""
    weight: float = 1.0
    """How many times the source enters an epoch: 2 is twice, 0.5 a seeded half of it."""
    split: str | None = None
    """The split of a hub dataset; None is `train`. Files have none."""
    columns: Mapping[str, str] | None = None
    """A column's name here -> its name in the file, as in {"prompt": "question_text"}."""
    tags: Mapping[str, str] | None = None
    """LLaMA-Factory's role_tag, content_tag, user_tag, … where turns name their speakers in a way of their own."""
    samples: int | None = None
    """At most so many records of the source, a seeded choice."""
    subset: str | None = None
    """The configuration of a hub dataset."""
    reader: str | None = None
    """`FILE.py:FUNCTION`, which is given the path and yields rows (see `own_reader`)."""
    optional_columns: bool = False
    """Whether columns and tags are LLaMA-Factory's: a row may lack some columns instead of being refused."""


def parse_specs(
    value: Any, dataset_dir: str | None = None, weights: Sequence[float] | None = None
) -> list[DatasetSpec]:
    """`dataset` of a config as specs: a path, or a list of paths and mappings {path, format, weight, split, columns, reader}.

    `weights`, one for each entry, take the place of their own. A name that is no path is looked up in `dataset_info.json` of `dataset_dir` (of `data`, where none is given).
    Raises `UserError` for an unknown key or a value of the wrong kind, naming the entry.
    """
    if isinstance(value, (str, Path, Mapping, DatasetSpec)):
        value = [value]
    if not isinstance(value, Sequence) or not value:
        raise UserError(
            f"dataset is {value!r}; wanted a path, or a list of paths or of {{path, format, weight, …}}"
        )
    entries = [looked_up(entry, dataset_dir) for entry in value]
    specs = [_spec(entry, f"dataset, entry {number}") for number, entry in enumerate(entries, start=1)]
    if weights is None:
        return specs
    if len(weights) != len(specs) or not all(0 < weight < math.inf for weight in weights):
        raise UserError(
            f"interleave_probs names {len(weights)} weights for {len(specs)} entries of `dataset`; wanted one above 0 for each"
        )
    return [replace(spec, weight=float(weight)) for spec, weight in zip(specs, weights, strict=True)]


def _spec(entry: Any, what: str) -> DatasetSpec:
    if isinstance(entry, DatasetSpec):
        entry = {option.name: getattr(entry, option.name) for option in fields(DatasetSpec)}
    if isinstance(entry, (str, Path)):
        entry = {"path": str(entry)}
    if not isinstance(entry, Mapping):
        raise UserError(f"{what} is {entry!r}; wanted a path or {{path, format, weight, split, columns}}")
    entry = _translated(entry)
    known = [option.name for option in fields(DatasetSpec)]
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise UserError(f"{what}: unknown key {key!r}; {hint}")
    path, form, weight, columns = (entry.get(key) for key in ("path", "format", "weight", "columns"))
    if not isinstance(path, (str, Path)) or not str(path):
        raise UserError(f"{what}: `path` is {path!r}; wanted a file, a folder, a glob or a hub id")
    if form is not None and form != "lines" and form not in FORMATS:
        near = difflib.get_close_matches(str(form), FORMATS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"{what}: unknown format {form!r}{hint}; known are {', '.join(FORMATS)}, lines")
    weight = 1.0 if weight is None else weight
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise UserError(
            f"{what}: `weight` is {weight!r}; wanted a number above 0 (0.5: half of it, 2: twice)"
        )
    if columns is not None and not (
        isinstance(columns, Mapping)
        and all(isinstance(name, str) for pair in columns.items() for name in pair)
    ):
        raise UserError(f"{what}: `columns` is {columns!r}; wanted {{name here: name in the file}}")
    samples = entry.get("samples")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise UserError(f"{what}: `samples` is {samples!r}; wanted a whole number from 1 on")
    reader = entry.get("reader")
    if reader is not None and form == "lines":
        raise UserError(f"{what}: `format: lines` is for text files; with a `reader` leave it away")
    return DatasetSpec(
        str(path),
        form,
        float(weight),
        entry.get("split"),
        columns,
        entry.get("tags"),
        samples,
        entry.get("subset"),
        None if reader is None else check_reader(reader, what),
        bool(entry.get("optional_columns")),
    )


def _translated(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with axolotl's keys and values under our names; ours win."""
    translated = {
        _KEYS.get(key, key): value for key, value in entry.items() if _KEYS.get(key, key) not in entry
    }
    translated.update({key: value for key, value in entry.items() if key not in _KEYS})
    if isinstance(translated.get("format"), str):
        translated["format"] = _FORMATS.get(translated["format"], translated["format"])
    if "field_messages" in translated:
        columns = {**(translated.get("columns") or {}), "messages": translated.pop("field_messages")}
        translated["columns"] = columns
    return translated
