"""Which records of which sources are used, in which order, and which of them are held out: arithmetic with numbers.

The records of all sources are numbered through. Memory holds a few bytes a record where something is drawn, and
nothing where everything is used as it comes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from espalier.data.choice.mixing import draws
from espalier.data.read.account import Account
from espalier.data.read.specs import DatasetSpec
from espalier.errors import UserError

Picks = npt.NDArray[np.int32]
Marks = npt.NDArray[np.uint64]


def drawn(
    sizes: Sequence[int], specs: Sequence[DatasetSpec], mix: str, seed: int, left_out: Account
) -> tuple[Picks | None, list[int]]:
    """(the numbers of the records in the order of an epoch, how many of each source); None: all as they come.

    `sizes`: records of each source. What `samples`, weights and `mix` leave out is counted in `left_out`.
    """
    assert sum(sizes) < 2**31, "more records than a 32-bit number can tell"
    picked = [_sampled(size, spec, seed, left_out) for size, spec in zip(sizes, specs, strict=True)]
    if mix == "concat":
        picked = [_weighed(picks, spec, seed, left_out) for picks, spec in zip(picked, specs, strict=True)]
    counts = [len(picks) for picks in picked]
    first = np.cumsum([0, *sizes])
    if mix == "concat" or not all(counts):
        if all(isinstance(picks, range) for picks in picked):
            return None, counts
        parts = [
            np.asarray(picks, np.int32) + np.int32(start) for picks, start in zip(picked, first, strict=False)
        ]
        return np.concatenate(parts), counts
    numbers = (
        int(first[source]) + picked[source][index]
        for source, index in draws(counts, [spec.weight for spec in specs], mix, seed)
    )
    order = np.fromiter(numbers, np.int32)
    used_of = np.bincount(np.searchsorted(first, order, side="right") - 1, minlength=len(sizes)).tolist()
    for spec, used, count in zip(specs, used_of, counts, strict=True):
        if used < count:
            left_out[f"mix_strategy {mix}: not drawn of {spec.path}"] += count - used
    return order, used_of


def _sampled(size: int, spec: DatasetSpec, seed: int, left_out: Account) -> range | Picks:
    if spec.samples is None or size <= spec.samples:
        return range(size)
    left_out[f"more than {spec.samples} samples of {spec.path}"] += size - spec.samples
    chosen = random.Random(f"{seed}:{spec.path}").sample(range(size), spec.samples)
    return np.sort(np.array(chosen, np.int32))


def _weighed(picks: range | Picks, spec: DatasetSpec, seed: int, left_out: Account) -> range | Picks:
    """`weight` times the records: whole copies, and a seeded sample (in order) for the rest."""
    if spec.weight == 1:
        return picks
    copies, share = divmod(spec.weight, 1.0)
    rest = random.Random(f"{seed}:{spec.path}").sample(range(len(picks)), round(share * len(picks)))
    every = np.asarray(picks, np.int32)
    weighed = np.concatenate([np.tile(every, int(copies)), every[np.sort(np.array(rest, np.int64))]])
    if len(weighed) < len(picks):
        left_out[f"weight {spec.weight:g} of {spec.path}"] += len(picks) - len(weighed)
    return weighed


def held_out(
    marks: Callable[[], Iterable[Marks]], count: int, val_size: float, seed: int
) -> npt.NDArray[np.int64]:
    """The places (sorted) of the held-out ones of `count` records; records with one prompt stay on one side.

    Whole prompts are taken in the order of a seeded hash while they fit, so there are never more than `val_size`,
    which from 1 is a number of records, below 1 a share.

    Args:
        marks: the prompts' marks of all records in order, piece by piece; gone through a few times.

    Raises:
        UserError: `val_size` is no such number, leaves nothing to train on, or no prompt fits.
    """
    if isinstance(val_size, bool) or not 0 <= val_size < math.inf:
        raise UserError(
            f"val_size is {val_size!r}; wanted a number of records (200) or a share below 1 (0.05)"
        )
    if val_size == 0:
        return np.empty(0, np.int64)
    wanted = max(round(val_size * count) if val_size < 1 else int(val_size), 1)
    if wanted >= count:
        raise UserError(
            f"val_size {val_size:g} leaves nothing to train on: there are {count} records; make it smaller"
        )
    share = min(2 * wanted / count + 1e-4, 1.0)
    while True:
        places, lowest = _lowest(marks(), share, seed)
        taken, prompts = _fitting(lowest, wanted)
        if taken.sum() == wanted or share == 1.0:
            break
        share = min(4 * share, 1.0)
    if not taken.any():
        raise UserError(
            f"val_size {val_size:g} is {wanted} of {count} records, but they share only {prompts} prompts and a "
            "prompt stays on one side; make val_size larger or give an eval_dataset"
        )
    return np.sort(places[taken])


def _lowest(pieces: Iterable[Marks], share: float, seed: int) -> tuple[npt.NDArray[np.int64], Marks]:
    """Places and seeded marks of about the lowest `share` of all marks."""
    limit = np.uint64(min(int(share * 2**64), 2**64 - 1))
    salt = _mixed(np.array([seed % 2**64], np.uint64))[0]
    places, lowest, start = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
    for piece in pieces:
        marks = _mixed(piece ^ salt)
        (low,) = np.nonzero(marks <= limit)
        places.append(low + start)
        lowest.append(marks[low])
        start += len(piece)
    return np.concatenate(places), np.concatenate(lowest)


def _fitting(marks: Marks, wanted: int) -> tuple[npt.NDArray[np.bool_], int]:
    """(which are taken, how many groups there are): whole groups, lowest first, each that still fits."""
    _, group, sizes = np.unique(marks, return_inverse=True, return_counts=True)
    sums = np.cumsum(sizes)
    # All groups up to the first that does not fit at once; from there one by one.
    whole = int(np.searchsorted(sums, wanted, side="right"))
    chosen = np.zeros(len(sizes), bool)
    chosen[:whole] = True
    total = int(sums[whole - 1]) if whole else 0
    for at in range(whole, len(sizes)):
        if total == wanted:
            break
        if total + sizes[at] <= wanted:
            chosen[at] = True
            total += int(sizes[at])
    return chosen[group], len(sizes)


def _mixed(numbers: Marks) -> Marks:
    """The step of splitmix64: 0 does not stay 0."""
    return mixed(numbers + np.uint64(0x9E3779B97F4A7C15))


def mixed(numbers: Marks) -> Marks:
    """Each number spread over all 64 bits, one to one (the finisher of splitmix64, Steele et al. 2014)."""
    bits = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def without(picks: Picks | None, count: int, places: npt.NDArray[np.int64]) -> tuple[Picks, Picks]:
    """(the numbers that stay, those at `places`), each in their order; of `picks`, or of 0 ... count - 1."""
    kept = np.ones(count if picks is None else len(picks), bool)
    kept[places] = False
    if picks is not None:
        return picks[kept], picks[~kept]
    return np.flatnonzero(kept).astype(np.int32), places.astype(np.int32)
