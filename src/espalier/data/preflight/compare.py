"""Records held against records: the held-out part against training, pairs against pairs. By hashes, so in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from espalier.data.preflight.findings import HELD_OUT, TRAIN, WARNING, Finding
from espalier.data.preflight.look import Part
from espalier.data.records import Preference, Record
from espalier.data.sources import prompt_key


def shared_prompts(train: Iterable[Record], held_out: Sequence[Record]) -> list[Finding]:
    """Held-out records whose exact prompt is trained on; hashes of the smaller part only."""
    places: dict[int, list[str]] = {}
    for record in held_out:
        places.setdefault(hash(prompt_key(record)), []).append(record.source)
    met: dict[int, str] = {}
    for record in train:
        key = hash(prompt_key(record))
        if key in places:
            met.setdefault(key, record.source)
    if not met:
        return []
    first, trained_at = next((places[key][0], source) for key, source in met.items())
    count = sum(len(places[key]) for key in met)
    return [
        Finding(
            WARNING,
            f"held-out prompts that are trained on (this one at {trained_at})",
            count,
            len(held_out),
            first,
            "the held-out numbers would be too good; remove them from one of the two, or use val_size",
            HELD_OUT,
        )
    ]


def swapped_pairs(records: Sequence[Record]) -> list[Finding]:
    """Pairs that stand in the data the other way round too."""
    seen: dict[int, str] = {}
    swapped: list[Preference] = []
    pairs = 0
    for record in records:
        if isinstance(record, Preference):
            pairs += 1
            if hash((record.prompt, record.rejected, record.chosen)) in seen:
                swapped.append(record)
            seen.setdefault(hash((record.prompt, record.chosen, record.rejected)), record.source)
    if not swapped:
        return []
    one = swapped[0]
    other = seen[hash((one.prompt, one.rejected, one.chosen))]
    return [
        Finding(
            WARNING,
            f"pairs that contradict another pair (this one {other})",
            len(swapped),
            pairs,
            one.source,
            "what one prefers the other rejects; keep the one that is right",
            TRAIN,
        )
    ]


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
