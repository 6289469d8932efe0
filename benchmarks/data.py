"""Tokenising generated SFT records to disk, beside `datasets.map`: records a second and memory of all processes.

python benchmarks/data.py [--records 10000 200000] [--alone 1000000 5000000] [--workers 2] [--mean 130]

Sides, each in processes of its own, in turn:
  espalier        JSON lines -> checked records -> template -> tokens with trained flags -> columns on disk
  map, same work  `datasets.load_dataset` of the same file, then `map(batched, num_proc)` with espalier's own encoding
  map, usual      the same with what is usually written: apply_chat_template of prompt and whole, both tokenised,
                  labels masked up to the prompt's length

`--records` are measured on all sides, `--alone` on ours only (for memory). A second start is measured too, and how
full rows of 2048 tokens are. The clock stops when the last record is on disk. Memory is the sum over all processes
of a side, shared pages counted once (PSS), at its peak; `grown` is what came on top after everything was imported.
The generated files lie in the folder for temporary files and are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import lengths, report, words

ROW = 2048
STOCK = 20000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--records", type=int, nargs="*", default=[10_000, 200_000])
    options.add_argument("--alone", type=int, nargs="*", default=[])
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--tokenizer", default=None, help="a folder; else a BPE of 32768 tokens is trained")
    options.add_argument("--mean", type=int, default=130, help="characters or words of an answer")
    options.add_argument("--side", default=None)
    options.add_argument("--file", type=Path)
    asked = options.parse_args()
    if asked.side is not None:
        print(json.dumps(SIDES[asked.side](asked)))
        return
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as folder:
        if asked.tokenizer is None:
            asked.tokenizer = str(Path(folder) / "tokenizer")
            _tokenizer().save_pretrained(asked.tokenizer)
        for count in sorted({*asked.records, *asked.alone}):
            asked.file = Path(folder) / f"{count}.jsonl"
            generate(asked.file, count, asked.mean)
            print(f"{count:,} records, {asked.file.stat().st_size / 1e6:,.0f} MB", flush=True)
            sides = list(SIDES) if count in asked.records else ["espalier"]
            rounds = asked.rounds if count in asked.records else 1
            found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for _ in range(rounds):
                for side in sides:
                    found[side].append(_run(side, asked))
                    print(f"  {side}: {found[side][-1]}", flush=True)
            middle = {
                side: {key: sorted(row[key] for row in rows)[len(rows) // 2] for key in rows[0]}
                for side, rows in found.items()
            }
            report(f"data {count}, answers of {asked.mean}", middle, "records_per_second", "espalier")
            asked.file.unlink()


def generate(path: Path, count: int, mean: int = 130, seed: int = 0) -> None:
    """Chats of Chinese and English with log-normal lengths; no two have the same question."""
    draw = random.Random(seed)
    han = [chr(0x4E00 + i) for i in range(1500)]
    weights = [1 / (i + 20) for i in range(len(han))]
    pool = words(200_000, seed)

    def said(length: int, chinese: bool) -> str:
        if chinese:
            # A mark behind about every twelfth character, as people write.
            return (
                "".join(
                    h + ("，" if draw.random() < 0.08 else "") for h in draw.choices(han, weights, k=length)
                )
                + "。"
            )
        at = draw.randrange(len(pool) - length)
        return " ".join(pool[at : at + length]) + "."

    asked, answered = lengths(STOCK, min(25, mean), seed, 300), lengths(STOCK, mean, seed + 1, 700)
    stock = []
    for at in range(min(STOCK, count)):
        chinese = at % 2 == 0
        stock.append((said(asked[at], chinese), said(answered[at], chinese)))
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            question, answer = stock[number % len(stock)]
            row = {"instruction": f"{number}: {question}", "input": "", "output": answer}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _tokenizer() -> Any:
    from espalier.models.load import train_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.jsonl"
        generate(path, 3000, seed=7)
        texts = [" ".join(json.loads(line).values()) for line in path.read_text("utf-8").splitlines()]
    return train_tokenizer(texts, 32768)


# --- the sides --------------------------------------------------------------------------------------------------


def _ours(asked: Any) -> dict[str, float]:
    from espalier.data.preflight.look import look
    from espalier.data.read.specs import parse_specs
    from espalier.data.steps.feed import packed
    from espalier.data.store.job import Job
    from espalier.data.store.open import ReadSettings, opened
    from espalier.data.store.stack import Choice, stored

    encoder = _encoder(asked)
    with tempfile.TemporaryDirectory(dir=asked.file.parent) as folder, Memory() as memory:
        specs, job = parse_specs(str(asked.file)), Job("chat", encoder, stop=encoder.stop)
        reading = ReadSettings(Path(folder), asked.workers)
        start = time.perf_counter()
        stack, _, _ = opened(specs, job, reading)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(folder).rglob("*"))
        start = time.perf_counter()
        stack, order, _ = opened(specs, job, reading)
        again = time.perf_counter() - start
        start = time.perf_counter()
        look("train", Choice(stack, order), lambda tree: "")
        looked = time.perf_counter() - start
        forest = stored(Choice(stack, order))
        start = time.perf_counter()
        sizes = forest.sizes(paths=False)
        rows = packed(sizes, ROW, 0)
        filled = time.perf_counter() - start
        drawn = rows.members[:20_000]
        start = time.perf_counter()
        for at in drawn:
            forest[int(at)]
        trees = (time.perf_counter() - start) / len(drawn)
        assert stack.records == sum(1 for _ in asked.file.open("rb"))
        return {
            **memory.numbers(),
            "records": float(len(forest)),
            "seconds": seconds,
            "records_per_second": len(forest) / seconds,
            "tokens": float(sizes.sum(dtype="int64")),
            "disk_megabytes": size / 1e6,
            "second_start_seconds": again,
            "preflight_seconds": looked,
            "packing_seconds": filled,
            "packing_efficiency": float(sizes.sum(dtype="int64")) / (len(rows) * ROW),
            "microseconds_a_tree": 1e6 * trees,
        }


def _map(asked: Any, encode: Any) -> dict[str, float]:
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=asked.file.parent) as folder, Memory() as memory:
        start = time.perf_counter()
        rows = datasets.load_dataset("json", data_files=str(asked.file), split="train", cache_dir=folder)
        made = rows.map(
            encode,
            batched=True,
            num_proc=asked.workers,
            remove_columns=rows.column_names,
            load_from_cache_file=False,
        )
        seconds = time.perf_counter() - start
        tokens = sum(map(len, made[:1000]["input_ids"]))
        assert tokens
        size = sum(path.stat().st_size for path in Path(folder).rglob("*"))
        return {
            **memory.numbers(),
            "records": float(len(made)),
            "seconds": seconds,
            "records_per_second": len(made) / seconds,
            "disk_megabytes": size / 1e6,
        }


def _map_same(asked: Any) -> dict[str, float]:
    from espalier.data.encode.tokenise import encode_paths
    from espalier.data.read.account import Account
    from espalier.data.read.rows import parse_row

    encoder = _encoder(asked)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        names = list(batch)
        records: list[Any] = [
            parse_row(dict(zip(names, row, strict=True)), "x:1", "chat")
            for row in zip(*batch.values(), strict=True)
        ]
        paths = [branches[0] for _, branches, _ in encode_paths(records, encoder, Account())]
        return {"input_ids": [ids for ids, _ in paths], "trained": [flags for _, flags in paths]}

    return _map(asked, encode)


def _map_usual(asked: Any) -> dict[str, float]:
    tokenizer = _encoder(asked).tokenizer

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        prompts, wholes = [], []
        for question, answer in zip(batch["instruction"], batch["output"], strict=True):
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            prompts.append(
                tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
            )
            wholes.append(tokenizer.apply_chat_template(turns, tokenize=False))
        starts = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        ids = tokenizer(wholes, add_special_tokens=False)["input_ids"]
        labels = [[-100] * len(start) + row[len(start) :] for start, row in zip(starts, ids, strict=True)]
        return {"input_ids": ids, "labels": labels}

    return _map(asked, encode)


SIDES = {"espalier": _ours, "map, same work": _map_same, "map, usual": _map_usual}


def _encoder(asked: Any) -> Any:
    from espalier.data.encode.templates import choose_template
    from espalier.data.encode.tokenise import Encoder
    from espalier.models.load import load_tokenizer

    tokenizer = load_tokenizer(asked.tokenizer)
    return Encoder(tokenizer, choose_template(tokenizer), ROW, "drop")


def _run(side: str, asked: Any) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--file",
        str(asked.file),
        "--tokenizer",
        asked.tokenizer,
    ]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--workers", str(asked.workers)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


class Memory:
    """The memory of this process and all below it, looked at five times a second."""

    def __enter__(self) -> Memory:
        self._first = self._peak = _pss(os.getpid())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self._peak = max(self._peak, sum(map(_pss, _family(os.getpid()))))

    def numbers(self) -> dict[str, float]:
        return {"peak_megabytes": self._peak / 1e6, "grown_megabytes": (self._peak - self._first) / 1e6}

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


def _family(process: int) -> Iterator[int]:
    yield process
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def _pss(process: int) -> int:
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main()
