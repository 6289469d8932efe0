"""A stretch of a file -> the columns of its records and their trees. Pure, so any process may do any block.

What is known of a record or a tree is a number in a column, so that everything that is said of the data afterwards
(who is held out, how long, in which languages, what was cut) is counted from columns, in constant memory, and for any
choice of the records.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espalier.data.choice.mixing import takes
from espalier.data.encode.tokenise import Encoder, encode_paths, encode_prompt_ids
from espalier.data.encode.too_long import TooLong, TooLongError
from espalier.data.read.account import Account
from espalier.data.read.dataset_info import as_described
from espalier.data.read.lines import Block, Placed
from espalier.data.read.rows import parse_row
from espalier.data.records import BadRecord, LeftOut, Record
from espalier.data.store.columns import Numbers
from espalier.data.store.marks import (
    ENDLESS,
    pair_marks,
    prompt_key,
    prompt_mark,
    role_order,
    script_mark,
    tree_marks,
)
from espalier.errors import UserError
from espalier.trees.tree import Tree

RECORD = {"file": "<i4", "line": "<i8", "prompt": "<u8", "role": "<u2", "script": "<i1", "causes": "<u2"}
PAIR = {"pair": "<u8", "swapped": "<u8", "answers": "<i4"}
"""Of preferences: hashes of what is said in this order and in the other; how many answers there are."""
CHARACTERS = {"characters": "<i8"}
"""Of records that are not tokenised."""
TREE = {
    "record": "<i8",
    "path_tokens": "<i4",
    "longest": "<i4",
    "trained": "<i4",
    "branches": "<i4",
    "marks": "<u1",
}
SHAPE, EXTRAS, NOTE = {"shape": "<i4"}, {"extras": "<f4"}, {"note": "<u1"}
TOKENS = {"tokens": "<i4"}
"""A trained token t stands as -1 - t."""


@dataclass(frozen=True)
class Job:
    """What is done with every row of a source.

    `encoder` None: the records are read and not tokenised. `max_prompt_length` is of prompts; `stop` are the ids that
    end an answer; of `data_split` see `mixing.takes`.
    """

    kind: str
    encoder: Encoder | None = None
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] | None = None
    described: bool = False
    max_prompt_length: int | None = None
    stop: tuple[int, ...] = ()
    data_split: tuple[float, ...] | None = None
    seed: int = 0

    @property
    def record_columns(self) -> dict[str, str]:
        pairs = PAIR if self.kind in ("preference", "ranking") else {}
        return RECORD | pairs | ({} if self.encoder else CHARACTERS)

    @property
    def tree_columns(self) -> dict[str, str]:
        return TREE if self.encoder else {}

    @property
    def parts(self) -> dict[str, str]:
        """Columns of which a tree has a stretch."""
        if self.encoder is None:
            return {}
        branched = SHAPE | EXTRAS if self.kind in ("preference", "ranking", "unpaired") else {}
        return TOKENS | branched | (NOTE if self.kind == "prompt" else {})


@dataclass
class BlockResult:
    """What became of a block.

    Attributes:
        columns: name -> numbers; of a part all trees' stretches joined, with `NAME.size` (trees,) beside it.
        trees_of: (records,) how many trees each has.
        names: what the numbers in `file`, `role` and `causes` stand for.
        extras: names of the extras.
        beyond: good records that were more than asked for.
        too_long: records under `overlong: error`; the columns are empty then.
        error: what stops a run; the columns are empty then.
    """

    columns: dict[str, Numbers] = field(default_factory=dict)
    trees_of: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))
    names: dict[str, list[Any]] = field(default_factory=dict)
    extras: str = ""
    formats: Counter[str] = field(default_factory=Counter)
    left_out: Account = field(default_factory=Account)
    bad: list[tuple[BadRecord, Any]] = field(default_factory=list)
    good: int = 0
    beyond: int = 0
    too_long: TooLong | None = None
    error: str | None = None


def work(job: Job, block: Block, most: int | None = None, *, tokenise: bool = True) -> BlockResult:
    """The block's columns; of at most `most` good records. Without `tokenise` only counted, for their faults."""
    result = BlockResult()
    records: list[Record] = []
    try:
        for record in outcomes(job, block.placed(), result):
            if most is None or len(records) < most:
                records.append(record)
            else:
                result.beyond += 1
        result.good = len(records)
        if tokenise:
            _Table(job, result).fill(records)
    except TooLongError as error:
        result.too_long = error.found
    except UserError as error:
        return BlockResult(error=str(error))
    return result


def outcomes(job: Job, rows: Iterable[Placed], result: BlockResult) -> Iterator[Record]:
    """The good records of rows; everything else is counted in `result`."""
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


class _RecordAccount(Account):
    """An account that also knows what was said of the present record."""

    def __init__(self) -> None:
        super().__init__()
        self.now: list[str] = []

    def add(self, cause: str, place: str, reason: str = "") -> None:
        self.now.append(cause)

    def taken(self) -> tuple[str, ...]:
        causes, self.now = tuple(self.now), []
        return causes


class _Names:
    """Values -> small numbers, in the order of their first coming."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def __getitem__(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))


class _Table:
    """Collects the columns of a block; lists, because one conversion at the end is cheaper than one a record."""

    def __init__(self, job: Job, result: BlockResult) -> None:
        self._job, self._result = job, result
        self._lists: dict[str, Any] = {
            name: array("i")
            if name == "tokens"
            else []  # a long text has more tokens than a list should hold
            for name in (
                *job.record_columns,
                *job.tree_columns,
                *job.parts,
                *(f"{p}.size" for p in job.parts),
            )
        }
        self._flags = bytearray()
        self._names = {"file": _Names(), "role": _Names(), "causes": _Names()}
        self._trees_of: list[int] = []

    def fill(self, records: Sequence[Record]) -> None:
        if self._job.encoder is None:
            for record in records:
                self._record(record, record.notes)
                self._lists["characters"].append(sum(map(len, record.texts)))
                self._trees_of.append(0)
        elif self._job.kind == "prompt":
            self._prompts(records, self._job.encoder)
        else:
            self._trained(records, self._job.encoder)
        self._result.columns = {
            name: np.array(
                values, (self._job.record_columns | self._job.tree_columns | self._job.parts).get(name, "<i8")
            )
            for name, values in self._lists.items()
        }
        if self._flags:
            tokens = self._result.columns["tokens"]
            flags = np.frombuffer(self._flags, np.bool_)
            tokens[flags] = -1 - tokens[flags]
        self._result.trees_of = np.array(self._trees_of, np.int64)
        self._result.names = {name: list(names.numbers) for name, names in self._names.items()}

    def _record(self, record: Record, causes: tuple[str, ...]) -> None:
        lists, names = self._lists, self._names
        path, _, line = record.source.rpartition(":")
        number = int(line)
        lists["file"].append(names["file"][path])
        lists["line"].append(number)
        lists["prompt"].append(prompt_mark(record))
        lists["role"].append(names["role"][role_order(record)])
        lists["script"].append(script_mark(record, number))
        lists["causes"].append(names["causes"][causes])
        if "pair" in lists:
            pair, swapped = pair_marks(record)
            lists["pair"].append(pair)
            lists["swapped"].append(swapped)
            lists["answers"].append(len(record.answers))

    def _trained(self, records: Sequence[Record], encoder: Encoder) -> None:
        noted = _RecordAccount()
        before: Record | None = None
        for record, paths, extras in encode_paths(records, encoder, noted):
            if record is not before:
                self._record(record, noted.taken())
                self._trees_of.append(0)
                before = record
            if not paths:
                continue
            self._trees_of[-1] += 1
            if len(paths) == 1:
                self._path(*paths[0])
            else:
                self._tree(Tree.join(paths, source=record.source, extras=extras))
            if "extras" in self._lists:
                assert len(extras) < 2, extras.keys()
                values = [float(number) for extra in extras.values() for number in extra]
                self._result.extras = next(iter(extras), self._result.extras)
                self._part("extras", values)
                if len(paths) == 1:
                    self._part("shape", [])

    def _path(self, ids: list[int], flags: list[bool]) -> None:
        """A tree of one branch; as `Tree.from_path` makes it, without making it."""
        assert len(ids) == len(flags) > 0 and not flags[0], "a token without a parent is never trained"
        lists = self._lists
        self._part("tokens", ids)
        self._flags.extend(flags)
        lists["path_tokens"].append(len(ids))
        lists["longest"].append(len(ids))
        lists["trained"].append(sum(flags))
        lists["branches"].append(1)
        lists["marks"].append(0 if self._ends(ids, flags) else ENDLESS)

    def _ends(self, ids: list[int], flags: list[bool]) -> bool:
        """Whether the last trained token ends an answer, or the branch was cut, or there is no answer in it."""
        job = self._job
        assert job.encoder is not None
        if job.kind in ("text", "prompt") or len(ids) >= job.encoder.cutoff_len:
            return True
        return ids[len(flags) - 1 - flags[::-1].index(True)] in job.stop

    def _tree(self, tree: Tree) -> None:
        lists = self._lists
        shape: list[int] = []
        tokens: list[int] = []
        for node, _ in tree.nodes():
            shape += [len(node.tokens), len(node.children), len(node.ends), *node.ends]
            tokens += node.tokens.tolist()
            self._flags.extend(node.trained.tolist())
        self._part("tokens", tokens)
        self._part("shape", shape)
        lists["path_tokens"].append(tree.n_path_tokens)
        lists["longest"].append(tree.longest_path)
        lists["trained"].append(tree.n_trained)
        lists["branches"].append(tree.n_branches)
        assert self._job.encoder is not None
        lists["marks"].append(tree_marks(tree, self._job.stop, self._job.encoder.cutoff_len))

    def _part(self, name: str, values: Sequence[Any]) -> None:
        self._lists[name].extend(values)
        self._lists[f"{name}.size"].append(len(values))

    def _prompts(self, records: Sequence[Record], encoder: Encoder) -> None:
        assert self._job.max_prompt_length is not None
        noted = _RecordAccount()
        for record, ids in encode_prompt_ids(records, encoder, self._job.max_prompt_length, noted):
            self._record(record, noted.taken())
            self._trees_of.append(int(ids is not None))
            if ids is not None:
                self._path(ids, [False] * len(ids))
                note = json.dumps([record.messages[-1].content, record.reference], ensure_ascii=False)
                self._part("note", note.encode())
