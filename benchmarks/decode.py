"""Sampling 64 tokens: Espalier's memory against transformers' generate, 32 answers at a time.

python benchmarks/decode.py [--model S] [--new 64]
"""

from __future__ import annotations

import argparse
import random

import torch

from _common import VOCABULARY, lengths, model_of, paired, report, tokenizer_of
from espalier.models.generate import Sampling, sample
from espalier.models.probe import probe


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="S")
    parser.add_argument("--new", type=int, default=64)
    wanted = parser.parse_args()
    tokenizer = tokenizer_of(wanted.model)
    lm, plain = model_of(wanted.model, tokenizer).eval(), model_of(wanted.model, tokenizer).eval()
    traits = probe(lm)
    draw = random.Random(0)
    prompts = [
        [draw.randrange(3, VOCABULARY[wanted.model]) for _ in range(n)] for n in lengths(32, 180, 3, 600)
    ]
    sampling = Sampling(wanted.new)  # no stop token on either side, so that both make as many tokens

    for copies in (1, 8):
        chosen = prompts[: 32 // copies]
        width = max(map(len, chosen))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in chosen])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chosen])

        def ours(chosen=chosen, copies=copies) -> dict[str, float]:  # type: ignore[no-untyped-def]
            found = sample(lm, traits, chosen, sampling, copies=copies, rows=32)
            return {"tokens": float(sum(len(a.tokens) for answers in found for a in answers))}

        def theirs(ids=ids, mask=mask, copies=copies) -> dict[str, float]:  # type: ignore[no-untyped-def]
            made = plain.generate(
                ids, attention_mask=mask, max_new_tokens=wanted.new, min_new_tokens=wanted.new, do_sample=True,
                top_k=0, num_return_sequences=copies, pad_token_id=0,
            )  # fmt: skip
            return {"tokens": float(made[:, ids.shape[1] :].numel())}

        found = paired({"espalier": ours, "transformers generate": theirs})
        for numbers in found.values():
            numbers["tokens_per_second"] = numbers["tokens"] / numbers["seconds"]
        report(f"decode {wanted.model} {len(chosen)}x{copies}", found, "tokens_per_second", "espalier")


if __name__ == "__main__":
    main()
