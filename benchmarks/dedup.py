"""Near-duplicate removal: Espalier's numpy MinHash, rensa (Rust) and datasketch, on the same shingles.

Leaves out reading and writing. Each finds the pairs at or above a Jaccard similarity of 0.8 in the same texts:
candidates by its own signatures and bands (128 places; 21 bands of 6 rows where it lets one choose), then compared
exactly. Recall is against brute force over all pairs. Run: `espalier bench dedup [TEXTS]`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from espalier.corpora.clean.minhash import Signer, band_keys, bands_for, candidates
from espalier.corpora.clean.shingles import jaccard, shingles

THRESHOLD, PLACES, ROUNDS = 0.8, 126, 3
Pairs = set[tuple[int, int]]


def corpus(number: int, seed: int = 0) -> list[str]:
    """Texts of 40 to 800 characters, half Chinese and half words, a third of them an edited copy of another."""
    chance = random.Random(seed)
    han = [chr(0x4E00 + i) for i in range(3000)]
    words = [
        "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(4000)
    ]
    weights = [1 / (rank + 10) for rank in range(4000)]
    texts: list[str] = []
    while len(texts) < number:
        if texts and chance.random() < 1 / 3:
            unit = list(texts[chance.randrange(len(texts))])
            for place in chance.sample(
                range(len(unit)), round(len(unit) * chance.choice((0.0, 0.01, 0.02, 0.03, 0.06)))
            ):
                unit[place] = chance.choice(han)
            texts.append("".join(unit))
        elif chance.random() < 0.5:
            texts.append("".join(chance.choices(han, weights[:3000], k=chance.randint(40, 800))))
        else:
            texts.append(" ".join(chance.choices(words, weights, k=chance.randint(10, 160))))
    return texts


def exact(sets: list[Any], pairs: Pairs) -> Pairs:
    return {(i, j) for i, j in pairs if jaccard(sets[i], sets[j]) >= THRESHOLD}


def tuples(pairs: Any) -> Pairs:
    return {(earlier, later) for later, earlier in pairs.tolist()}


def own(sets: list[Any]) -> Pairs:
    signer = Signer(PLACES)
    return tuples(
        candidates(band_keys(np.stack([signer.sign(marks) for marks in sets]), *bands_for(THRESHOLD)))
    )


def rensa_signatures(sets: list[Any]) -> Pairs:
    """rensa's signatures from our shingles, our bands."""
    import rensa

    offsets = np.cumsum([0, *(len(marks) for marks in sets)]).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(sets), offsets, PLACES, 1)
    rows = np.asarray(matrix.to_rows())
    return tuples(candidates(band_keys(rows.astype(np.uint32), *bands_for(THRESHOLD))))


def rensa_index(sets: list[Any]) -> Pairs:
    """rensa as its documentation uses it: one object a text, its own index."""
    import rensa

    index = rensa.RMinHashLSH(threshold=THRESHOLD, num_perm=PLACES + 2, num_bands=16)
    found: Pairs = set()
    for number, marks in enumerate(sets):
        sketch = rensa.RMinHash(num_perm=PLACES + 2, seed=1)
        sketch.update([str(mark) for mark in marks.tolist()])
        found |= {(other, number) for other in index.query(sketch) if other != number}
        index.insert(number, sketch)
    return found


def datasketch_index(sets: list[Any]) -> Pairs:
    """datasketch's bulk signatures and its index."""
    import datasketch

    index = datasketch.MinHashLSH(num_perm=PLACES, params=bands_for(THRESHOLD))
    found: Pairs = set()
    texts = [[mark.to_bytes(8, "little") for mark in marks.tolist()] for marks in sets]
    for number, sketch in enumerate(datasketch.MinHash.generator(texts, num_perm=PLACES)):
        found |= {(int(other), number) for other in index.query(sketch)}
        index.insert(str(number), sketch)
    return found


def measure(number: int) -> dict[str, Any]:
    texts = corpus(number)
    started = time.perf_counter()
    sets = [shingles(text) for text in texts]
    shingled = time.perf_counter() - started
    truth = exact(sets, set(combinations(range(min(number, 2000)), 2)))
    results: dict[str, Any] = {
        "texts": number,
        "true_pairs": len(truth),
        "shingles_per_second": round(number / shingled),
    }
    ways: dict[str, Callable[[list[Any]], Pairs]] = {
        "espalier": own,
        "rensa signatures, espalier bands": rensa_signatures,
        "rensa": rensa_index,
        "datasketch": datasketch_index,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            pairs = way(sets)
            seconds[name].append(time.perf_counter() - started)
            found = exact(sets, {pair for pair in pairs if max(pair) < 2000})
            results[name] = {
                "texts_per_second": round(number / median(seconds[name])),
                "recall": round(len(found & truth) / len(truth), 4),
                "candidates": len(pairs),
            }
    return results


if __name__ == "__main__":
    measured = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
    print(json.dumps(measured, indent=2))
    (Path(__file__).parent / "results" / "dedup.json").write_text(
        json.dumps(measured, indent=2) + "\n", encoding="utf-8"
    )
