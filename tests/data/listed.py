"""Records and prompts the plain way, all in memory at once: what the stores must give, found without them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.data.choice.choose import drawn
from espalier.data.choice.mixing import takes
from espalier.data.encode.prompts import encode_prompt_ids
from espalier.data.encode.tokenise import Encoder
from espalier.data.read.account import Account
from espalier.data.read.dataset_info import as_described
from espalier.data.read.rows import parse_row
from espalier.data.read.sources import SHOWN, LoadReport, no_record, rows_of, too_bad
from espalier.data.read.specs import DatasetSpec
from espalier.data.records import KINDS, BadRecord, LeftOut, Record
from espalier.data.store.table import prompt_key
from espalier.disk.writing import write_text, writing_to


def load_records(
    specs: Sequence[DatasetSpec],
    kind: str,
    *,
    skip_bad: bool = False,
    rejected_path: str | os.PathLike[str] | None = None,
    seed: int = 0,
    mix: str = "concat",
    max_samples: int | None = None,
    data_split: Sequence[float] | None = None,
) -> LoadReport:
    """All records of `specs`, of one `kind` (one of `KINDS`), in the order of the sources.

    `mix` "first" or "all" draws from the sources by their weights instead (see `mixing`). `max_samples` takes the
    first of each source; `data_split` the share of them that records of this kind get (see `mixing.takes`).

    With `skip_bad`, bad records are counted and written to `rejected_path` (JSON lines: source, reason, row);
    without it the first ten of them are the error. Raises `UserError` for those, for a source that is missing
    or empty, and when nothing is left.
    """
    assert kind in KINDS, kind
    loaded = LoadReport()
    rejected: list[tuple[BadRecord, Any]] = []
    sources: list[list[Record]] = []
    for spec in specs:
        records: list[Record] = []
        formats = loaded.formats.setdefault(spec.path, Counter())
        for place, row, raw in rows_of(spec, loaded.hashes):
            if isinstance(row, BadRecord):
                outcome: Any = row
            else:
                form = None if spec.format == "lines" else spec.format
                columns = spec.columns or {}
                if spec.optional_columns:
                    row, columns = as_described(row, columns, spec.tags, kind), {}
                outcome = parse_row(row, place, kind, format=form, columns=columns, formats=formats)
            if isinstance(outcome, BadRecord):
                rejected.append((outcome, raw if isinstance(row, BadRecord) else row))
                loaded.left_out.add(f"bad record: {outcome.cause}", outcome.source, outcome.reason)
            elif isinstance(outcome, LeftOut):
                loaded.left_out.add(outcome.cause, outcome.source)
            elif data_split and not takes(data_split, kind, prompt_key(outcome), seed):
                loaded.left_out[f"data_split {','.join(f'{x:g}' for x in data_split)}: another stage's"] += 1
            else:
                records.append(outcome)
        if max_samples is not None and len(records) > max_samples:
            loaded.left_out[f"max_samples {max_samples} of {spec.path}"] += len(records) - max_samples
            records = records[:max_samples]
        sources.append(records)
    order, counts = drawn([len(records) for records in sources], specs, mix, seed, loaded.left_out)
    every = [record for records in sources for record in records]
    loaded.records = every if order is None else [every[number] for number in order]
    for spec, count in zip(specs, counts, strict=True):
        loaded.counts[spec.path] = loaded.counts.get(spec.path, 0) + count
    if rejected and not skip_bad:
        causes = Counter(bad.cause for bad, _ in rejected)
        raise too_bad([str(bad) for bad, _ in rejected[:SHOWN]], causes, len(loaded.records))
    if rejected and rejected_path is not None:
        _write_rejected(Path(rejected_path), rejected)
    if not loaded.records:
        raise no_record(kind, specs, loaded.left_out)
    return loaded


def _write_rejected(path: Path, rejected: list[tuple[BadRecord, Any]]) -> None:
    """Whole or not at all, so that a run that is killed leaves no half file."""
    lines = (
        {"source": bad.source, "cause": bad.cause, "reason": bad.reason, "row": row} for bad, row in rejected
    )
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines))


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt ready for generation, with the record it came from (`reference`, `source`)."""

    tokens: list[int]
    record: Record


def encode_prompts(
    records: Sequence[Record], encoder: Encoder, *, max_prompt_length: int
) -> tuple[list[EncodedPrompt], Account]:
    """Token ids to generate from, and the account; "trim" cuts the beginning of a prompt and keeps its bos token."""
    account = Account()
    encoded = encode_prompt_ids(records, encoder, max_prompt_length, account)
    return [EncodedPrompt(ids, record) for record, ids in encoded if ids is not None], account
