"""Several sources as one: how often each is drawn and when the end is reached; one source for three stages.

`concat` goes through every source as often as its weight says. `first` and `all` draw the next record's source with
the probability of its weight: `first` ends when a source has no more, `all` when every source was used up once, used
up sources beginning again (so records of small sources repeat, and no record is missing).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence

from espalier.errors import UserError

PHASES = {"text": 0, "chat": 0, "preference": 1, "ranking": 1, "unpaired": 1, "prompt": 2}
"""Which share of DeepSpeed-Chat's data_split a kind of records takes: imitation, preferences, rollouts."""


def draws(sizes: Sequence[int], weights: Sequence[float], until: str, seed: int) -> Iterator[tuple[int, int]]:
    """(source, record of it) in the order drawn; records of a source in their own order.

    `sizes`: records of each source, all above 0. `weights`: above 0, in any unit. `until`: "first" or "all".
    """
    assert until in ("first", "all") and len(sizes) == len(weights) and all(sizes), (until, sizes, weights)
    draw = random.Random(f"{seed}:mix")
    taken = [0] * len(sizes)
    unused = len(sizes)
    sources = range(len(sizes))
    while unused:
        source = draw.choices(sources, weights)[0]
        if until == "first" and taken[source] == sizes[source]:
            return
        yield source, taken[source] % sizes[source]
        taken[source] += 1
        unused -= taken[source] == sizes[source]


def check_shares(shares: Sequence[float]) -> None:
    """Raises `UserError` unless these are three numbers from 0 on that are not all 0."""
    if len(shares) != 3 or any(not share >= 0 for share in shares) or not sum(shares) > 0:
        raise UserError(
            f"data_split is {', '.join(f'{share:g}' for share in shares)}; wanted three shares, for imitation, "
            "preferences and rollouts, such as 2,4,4"
        )


def takes(shares: Sequence[float], kind: str, key: str, seed: int) -> bool:
    """Whether a stage that wants records of `kind` takes the record with the prompt `key`.

    By a hash of the prompt, so that the shares hold about, records with one prompt stay together, and no stage sees
    what another was given.
    """
    check_shares(shares)
    digest = hashlib.blake2b(f"{seed}\0{key}".encode("utf-8", "replace"), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64 * sum(shares)
    phase = PHASES[kind]
    return sum(shares[:phase]) <= place < sum(shares[: phase + 1])
