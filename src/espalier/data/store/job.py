"""What is done with the rows of a source, what comes of a stretch of them, and which columns that gives.

What is known of a record or a tree is a number in a column, so that everything that is said of the data afterwards
(who is held out, how long, in which languages, what was cut) is counted from columns, in constant memory, and for any
choice of the records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espalier.data.encode.tokenise import Encoder
from espalier.data.encode.too_long import TooLong
from espalier.data.read.account import Account
from espalier.data.records import BadRecord
from espalier.data.store.columns import Numbers

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
        blanks = EXTRAS if self.kind == "text" and self.encoder.blanks is not None else {}
        return TOKENS | branched | blanks | (NOTE if self.kind == "prompt" else {})


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
