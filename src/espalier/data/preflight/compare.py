"""Records held against records: the held-out part against training, pairs against pairs. By hashes, in flat memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from espalier.data.preflight.findings import HELD_OUT, TRAIN, WARNING, Finding
from espalier.data.preflight.look import Part
from espalier.data.store.stack import Choice

_AT_ONCE = 1 << 20
"""How many pairs are compared at once."""


def shared_prompts(train: Choice, held_out: Choice) -> list[Finding]:
    """Held-out records whose exact prompt is trained on; memory holds the held-out part's hashes only."""
    held_prompts = np.concatenate([held_out.stack.of_records("prompt", n) for n in held_out.chunks()])
    known = np.unique(held_prompts)
    met = np.zeros(len(known), bool)
    first: tuple[int, int] | None = None
    for numbers in train.chunks():
        marks = train.stack.of_records("prompt", numbers)
        at = np.minimum(np.searchsorted(known, marks), len(known) - 1)
        same = known[at] == marks
        met[at[same]] = True
        if first is None and same.any():
            place = int(np.argmax(same))
            first = int(numbers[place]), int(np.argmax(held_prompts == marks[place]))
    if first is None:
        return []
    trained_at = train.stack.source(first[0])
    return [
        Finding(
            WARNING,
            f"held-out prompts that are trained on (this one at {trained_at})",
            int(np.isin(held_prompts, known[met]).sum()),
            len(held_out),
            held_out.stack.source(number_of(held_out, first[1])),
            "the held-out numbers would be too good; remove them from one of the two, or use val_size",
            HELD_OUT,
        )
    ]


def number_of(choice: Choice, place: int) -> int:
    """The number in the stack of a choice's record."""
    return place if choice.picks is None else int(choice.picks[place])


def swapped_pairs(train: Choice) -> list[Finding]:
    """Pairs that stand in the data the other way round too."""
    if not train.stack.has("pair"):
        return []
    parts = len(train) // _AT_ONCE + 1
    pairs = count = 0
    first: tuple[int, int] | None = None
    for part in range(parts):
        places, pair, swapped = _pairs(train, part, parts)
        pairs += len(places)
        known, begins = np.unique(pair, return_index=True)
        if not len(known):
            continue
        at = np.minimum(np.searchsorted(known, swapped), len(known) - 1)
        later = (known[at] == swapped) & (begins[at] < np.arange(len(places)))
        count += int(later.sum())
        if later.any():
            one = int(np.argmax(later))
            if first is None or places[one] < first[0]:
                first = int(places[one]), int(places[begins[at[one]]])
    if first is None:
        return []
    source, other = (train.stack.source(number_of(train, place)) for place in first)
    return [
        Finding(
            WARNING,
            f"pairs that contradict another pair (this one {other})",
            count,
            pairs,
            source,
            "what one prefers the other rejects; keep the one that is right",
            TRAIN,
        )
    ]


def _pairs(choice: Choice, part: int, parts: int) -> tuple[npt.NDArray[np.int64], Any, Any]:
    """(places, hashes as they are, hashes the other way round) of a share of the pairs; a pair and its reverse share one."""
    places, pairs, others, start = [], [], [], 0
    for numbers in choice.chunks():
        pair, swapped = (choice.stack.of_records(name, numbers) for name in ("pair", "swapped"))
        mine = (pair != 0) & ((pair ^ swapped) % np.uint64(parts) == part)
        places.append(np.flatnonzero(mine) + start)
        pairs.append(pair[mine])
        others.append(swapped[mine])
        start += len(numbers)
    return np.concatenate(places), np.concatenate(pairs), np.concatenate(others)


def other_languages(train: Part, held_out: Part) -> list[Finding]:
    """A held-out part mostly in a script that training hardly has."""
    if not held_out.languages or not train.languages:
        return []
    name, share = max(held_out.languages.items(), key=lambda item: item[1])
    if not name or share < 0.5 or train.languages.get(name, 0.0) >= 0.05:
        return []
    count = round(share * held_out.records)
    what = f"held-out records read as {name}, and {train.languages.get(name, 0.0):.0%} of train"
    return [
        Finding(WARNING, what, count, held_out.records, "", "judge on what is trained, or mix both", HELD_OUT)
    ]
