"""Records a second of each tokenizer with one and with two processes; PanGu's also the way it was done before.

python benchmarks/tokenise.py --data FILE [FILE ...] --tokenizers FOLDER [FOLDER ...] [--records 20000]

A record is a line of the files (of a JSON line: its texts). All sides read the same records, in turn, and the
medians are reported. The first round, which fills caches, is not counted, but shown as `first`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from _common import paired, report
from espalier.data.encode.encoding import encode_texts
from espalier.models.load import load_tokenizer

CHUNK = 250
_held: dict[str, Any] = {}


def records(files: Sequence[Path], count: int) -> list[str]:
    found: list[str] = []
    for file in files:
        for line in file.read_text("utf-8", errors="ignore").splitlines():
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                value = line
            texts = [v for v in value.values() if isinstance(v, str)] if isinstance(value, dict) else [line]
            found.append("\n".join(texts)[:2000])
    return (found * (count // max(1, len(found)) + 1))[:count]


def tokens_of(job: tuple[str, list[str]]) -> int:
    folder, texts = job
    if folder not in _held:
        _held[folder] = load_tokenizer(folder)
    return sum(map(len, encode_texts(_held[folder], texts)))


def as_before(job: tuple[str, list[str]]) -> int:
    """PanGu's original steps: jieba's words, joined, through sentencepiece."""
    import jieba
    import sentencepiece

    folder, texts = job
    if "before" not in _held:
        jieba.setLogLevel(60)
        model = str(Path(folder) / "vocab.model")
        _held["before"] = sentencepiece.SentencePieceProcessor(model_file=model)
    total = 0
    for text in texts:
        words = [word.replace(" ", "\u2582").replace("\n", "\u2583") for word in jieba.cut(text)]
        total += len(_held["before"].encode(" ".join(words)))
    return total


def side(run: Any, folder: str, texts: list[str], pool: ProcessPoolExecutor | None) -> Any:
    jobs = [(folder, texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)]

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        tokens = sum(pool.map(run, jobs) if pool else map(run, jobs))
        seconds = time.perf_counter() - start
        return {"records_per_second": len(texts) / seconds, "tokens_per_second": tokens / seconds}

    return measure


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", nargs="+", type=Path, required=True)
    options.add_argument("--tokenizers", nargs="+", required=True)
    options.add_argument("--records", type=int, default=20000)
    options.add_argument("--rounds", type=int, default=3)
    asked = options.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes share the cores, not threads
    texts = records(asked.data, asked.records)
    print(f"{len(texts)} records of {sum(map(len, texts)) / len(texts):.0f} characters")
    for folder in asked.tokenizers:
        with ProcessPoolExecutor(1) as one, ProcessPoolExecutor(2) as two:
            name = Path(folder).name
            sides = {"1 process": side(tokens_of, folder, texts, one)}
            sides["2 processes"] = side(tokens_of, folder, texts, two)
            if (Path(folder) / "vocab.model").is_file():
                sides["jieba and sentencepiece, 1 process"] = side(as_before, folder, texts, one)
            first = sides["1 process"]()
            print(f"{name}: first {first['records_per_second']:.0f} records/s")
            report(f"tokenise {name}", paired(sides, asked.rounds), "records_per_second", "1 process")


if __name__ == "__main__":
    main()
