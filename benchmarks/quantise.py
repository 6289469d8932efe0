"""Weights in few bits: size, tokens a second, error of the logits, method by method, each against float32 in turn.

Speeds are ratios of medians within one run. `--model` S or M, or a folder with a tokenizer; a random model has
random logits, so its errors only rank the methods.

    python benchmarks/quantise.py --model M
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from _common import machine, model_of, text, tokenizer_of
from espalier.models import load
from espalier.models.measure import compare
from espalier.models.quantise.methods import Quantisation
from espalier.models.quantise.sizes import held_bytes
from espalier.models.quantise.turn import quantised

METHODS = (
    (Quantisation("cpm", 8), None),
    (Quantisation("cpm", 4), None),
    (Quantisation("bnb", 8), "bitsandbytes"),
    (Quantisation("bnb", 4), "bitsandbytes"),
    (Quantisation("bnb", 4, "fp4"), "bitsandbytes"),
    (Quantisation("torchao", 8), "torchao"),
    (Quantisation("torchao", 4), "torchao"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="M", help="S, M, or a model folder")
    parser.add_argument("--tokens", type=int, default=256, help="of each of the two rows that are read")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    if chosen.model in ("S", "M"):
        tokenizer = tokenizer_of(chosen.model)
        plain: Any = model_of(chosen.model, tokenizer).eval()
    else:
        tokenizer, plain = load.load_tokenizer(chosen.model), load.load_lm(chosen.model).eval()
    rows = [(tokenizer.encode(text(400, seed))[: chosen.tokens], [True] * chosen.tokens) for seed in (1, 2)]
    whole = sum(held_bytes(plain).values())
    found: dict[str, Any] = {}
    print(
        "method                                    size  reading  writing  logits off   KL/token   same choice"
    )
    for wanted, library in METHODS:
        if library is not None and importlib.util.find_spec(library) is None:
            print(f"{wanted!s:40} {library} is not installed")
            continue
        small = quantised(plain, wanted)
        numbers = asdict(compare(plain, small, rows, rounds=chosen.rounds))
        numbers["size_ratio"] = sum(held_bytes(small).values()) / whole
        found[str(wanted)] = numbers
        print(
            f"{wanted!s:40} {numbers['size_ratio']:5.3f}  {numbers['read_ratio']:6.2f}x  {numbers['written_ratio']:6.2f}x"
            f"  {numbers['logit_error_mean']:10.4f}  {numbers['kl']:9.2e}  {numbers['same_choice']:10.1%}",
            flush=True,
        )
    described = machine()
    file = Path(__file__).parent / "results" / f"quantise-{Path(chosen.model).name}.json"
    kept = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    kept[f"{described['device']}, {described['threads']} threads"] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": described,
        "found": found,
    }
    file.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
