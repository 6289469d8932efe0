"""What a store depends on: the data's content, the tokenizer's, the template, the options, and the code that encodes."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import espalier.data
from espalier.data.encode.templates import Template
from espalier.data.read.own_reader import reader_files
from espalier.data.read.sources import files_of, hub_dataset
from espalier.data.read.specs import DatasetSpec
from espalier.data.store.job import Job
from espalier.disk.reading import object_or_nothing
from espalier.disk.temporary import temporary_folder, temporary_name
from espalier.trees import tree

_LARGE = 1 << 26
"""A file from this size on is hashed again only when it has changed by what the file system says of it."""
_SETTLED = 2.0
"""Seconds; what was written more recently may change again without a change of its time."""


def description(
    spec: DatasetSpec, job: Job, *, max_samples: int | None, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that the columns depend on, as JSON.

    hashes: file -> sha256 of all files behind `spec` (see `content`).
    """
    encoder = job.encoder
    facts: dict[str, Any] = {
        "code": _code(),
        "libraries": {name: version(name) for name in ("tokenizers", "transformers", "jinja2")},
        "files": sorted(hashes.items()),
        "hub": [spec.path, spec.subset, spec.split] if files_of(spec) is None else None,
        "kind": job.kind,
        "format": spec.format,
        "reader": spec.reader and spec.reader.rpartition(":")[2],
        "columns": dict(job.columns),
        "tags": dict(job.tags) if job.tags else None,
        "described": job.described,
        "max_samples": max_samples,
        "data_split": [*job.data_split, job.seed] if job.data_split else None,
        "encoder": None,
    }
    if encoder is not None:
        facts["encoder"] = {
            "tokenizer": tokenizer_hash(encoder.tokenizer),
            "template": template_key(encoder.template),
            "cutoff_len": encoder.cutoff_len,
            "overlong": encoder.overlong,
            "answers_trained": encoder.answers_trained,
            "score_at": encoder.score_at,
            "mask_history": encoder.mask_history,
            "train_on_prompt": encoder.train_on_prompt,
            "blanks": encoder.blanks.described if encoder.blanks is not None else None,
            "max_prompt_length": job.max_prompt_length,
            "stop": list(job.stop),
        }
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def key_of(facts: Mapping[str, Any]) -> str:
    """The name of a store: 24 hexadecimal digits of a description's hash."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def content(spec: DatasetSpec, known: Path) -> dict[str, str]:
    """File -> sha256 of the files behind a spec and of its own reader; of a hub data set its version.

    known: a file that remembers the hashes of large files with their size, times and inode. A file that changes has
    another time of change, which (other than its time of writing) nobody can set.
    """
    files = files_of(spec)
    if files is None:
        return {spec.path: hub_version(spec)}
    remembered = object_or_nothing(known)
    hashes = {}
    for path in [*files, *(reader_files(spec.reader) if spec.reader is not None else [])]:
        state = path.stat()
        mark = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        name = str(path.resolve())
        if state.st_size >= _LARGE and remembered.get(name, {}).get("mark") == mark:
            hashes[str(path)] = remembered[name]["sha256"]
            continue
        with path.open("rb") as stream:
            hashes[str(path)] = hashlib.file_digest(stream, "sha256").hexdigest()
        if state.st_size >= _LARGE and time.time() - state.st_ctime > _SETTLED:
            remembered[name] = {"mark": mark, "sha256": hashes[str(path)]}
            _write(known, remembered)
    return hashes


def hub_version(spec: DatasetSpec) -> str:
    """What names the present version of a hub data set; a hash of its rows where it has no name."""
    import datasets

    rows = hub_dataset(spec)
    if isinstance(rows, datasets.Dataset):
        return f"fingerprint {rows._fingerprint}"
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 of what the tokenizer would save and of the module that its class is from."""
    digest = hashlib.sha256(f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}".encode())
    with temporary_folder() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(f"\0{path.relative_to(folder)}\0".encode())
                digest.update(path.read_bytes())
    source = sys.modules[type(tokenizer).__module__].__file__
    if source is not None:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def template_key(template: Template) -> str:
    """A template's class and all that it was made with but the tokenizer."""
    assert hasattr(template, "__dataclass_fields__"), "a template is a frozen dataclass"
    values = {f.name: repr(getattr(template, f.name)) for f in fields(template) if f.name != "tokenizer"}  # type: ignore[arg-type]
    return f"{type(template).__qualname__} {json.dumps(values, sort_keys=True)}"


@cache
def _code() -> str:
    """sha256 of the modules that turn files into trees: a version that nobody can forget to raise."""
    room = Path(espalier.data.__path__[0])
    parts = [*room.rglob("*.py"), *room.rglob("*.yaml")]
    digest = hashlib.sha256()
    for path in [*sorted(parts), Path(tree.__file__)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _write(known: Path, remembered: Mapping[str, Any]) -> None:
    """Best effort: without it a file is hashed once more."""
    partial = temporary_name(known)
    try:
        partial.write_text(json.dumps(remembered), "utf-8")
        partial.replace(known)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
