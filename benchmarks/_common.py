"""What the benchmarks share: a random model of a real architecture, pseudo-text, and paired timing.

Both sides of a comparison run in one process, in turn (A B A B ...), and what is reported is the ratio of
medians. Times of different runs on a shared machine say nothing about each other.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

from espalier.engine.hardware import device_name, keep_freed_memory
from espalier.models import load

MODELS = {
    "S": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4,
          "num_key_value_heads": 4},
    "M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
          "num_key_value_heads": 2},
}  # fmt: skip
VOCABULARY = {"S": 8192, "M": 32768}


def words(n: int, seed: int) -> list[str]:
    """Pseudo-words with the frequencies of a language."""
    draw = random.Random(seed)
    syllables = [c + v for c in "bdfghjklmnprstvwz" for v in "aeiou"]
    stock = ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3)))) for _ in range(5000)]
    weights = [1 / (i + 10) for i in range(len(stock))]
    return draw.choices(stock, weights, k=n)


def lengths(n: int, mean: float, seed: int, longest: int) -> list[int]:
    """Log-normal lengths."""
    draw = random.Random(seed)
    return [max(4, min(longest, int(draw.lognormvariate(0, 0.7) * mean * 0.78))) for _ in range(n)]


def text(n_words: int, seed: int) -> str:
    return " ".join(words(n_words, seed))


def tokenizer_of(size: str) -> Any:
    """A byte-level BPE with ChatML, trained on the pseudo-text."""
    made = load.train_tokenizer([text(400, i) for i in range(300)], VOCABULARY[size])
    made.model_max_length = 4096
    return made


def model_of(size: str, tokenizer: Any) -> Any:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = {
        "model_type": "qwen2",
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        **MODELS[size],
    }
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    return load.new_lm(config, max(VOCABULARY[size], len(tokenizer)), ids)


def paired(
    sides: dict[str, Callable[[], dict[str, float]]], rounds: int = 3, budget: float = 240
) -> dict[str, dict[str, float]]:
    """Run the sides in turn, once to warm up and then `rounds` times; the median of every number.

    A side may give ``seconds`` itself, to leave its own preparation out; ``cpu_seconds`` is all that it used. No new round begins when `budget`
    seconds are over and one has been measured.
    """
    keep_freed_memory()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    began = time.perf_counter()
    for i in range(rounds + 1):
        if i > 1 and time.perf_counter() - began > budget * i / (i + 1):
            break
        for name, side in sides.items():
            start, cpu = time.perf_counter(), time.process_time()
            numbers = side()
            numbers.setdefault("seconds", time.perf_counter() - start)
            # Waiting for a core that others use counts in the seconds, and not in these.
            numbers["cpu_seconds"] = time.process_time() - cpu
            if i:
                found[name].append(numbers)
    return {
        name: {
            **{key: statistics.median(row[key] for row in rows) for key in rows[0]},
            "rounds": float(len(rows)),
        }
        for name, rows in found.items()
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on; no names of hosts or people."""
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
                break
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    versions = {}
    for name in ("torch", "transformers", "trl", "lm_eval"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "instructions": [flag for flag in known if flag in flags],
        **versions,
    }


def report(name: str, results: dict[str, Any], key: str, ours: str) -> None:
    """Print the numbers and the ratios, and keep them as JSON."""
    described = machine()
    for side, numbers in results.items():
        ratio = results[ours][key] / numbers[key]
        if "cpu_seconds" in numbers:
            by_cpu = results[ours]["cpu_seconds"] / results[ours]["records"]
            numbers["ratio_by_cpu_seconds"] = numbers["cpu_seconds"] / numbers["records"] / by_cpu
        shown = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
        print(f"{name:24} {side:34} {shown}   {ours} is {ratio:.2f}x", flush=True)
    file = Path(__file__).parent / "results" / f"{name.replace(' ', '-').replace(',', '')}.json"
    file.parent.mkdir(exist_ok=True)
    kept = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    kept[f"{described['device']}, {described['threads']} threads"] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": described,
        "compared": key,
        "ratios": {side: round(results[ours][key] / n[key], 2) for side, n in results.items()},
        "medians": results,
    }
    file.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


def peak_flops(dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """The most that a matrix product reaches here, in FLOP for each second of CPU time (of one core)."""
    a = torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(20):
        start = time.process_time()
        _ = a @ a
        best = min(best, time.process_time() - start)
    return 2 * size**3 / best
