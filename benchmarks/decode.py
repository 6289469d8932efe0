"""Sampling: Espalier's decoding against transformers' generate, 32 answers at a time.

Prompts of log-normal length (mean about 180 tokens); answers all of 64 tokens, or ended by stop tokens as
answers are (mean about 50, at most 128).

python benchmarks/decode.py [--model S] [--new 64]
"""

from __future__ import annotations

import argparse
import random

import torch

from _common import VOCABULARY, lengths, model_of, paired, report, tokenizer_of
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="S")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    tokenizer = tokenizer_of(wanted.model)
    lm, plain = model_of(wanted.model, tokenizer).eval(), model_of(wanted.model, tokenizer).eval()
    traits = probe(lm)
    draw = random.Random(0)
    prompts = [
        [draw.randrange(3, VOCABULARY[wanted.model]) for _ in range(n)] for n in lengths(32, 180, 3, 600)
    ]
    # A random model is near uniform, so that this many stop tokens end an answer after 50 tokens or so.
    endings = {
        "fixed": (wanted.new, ()),
        "ragged": (2 * wanted.new, tuple(range(3, 3 + VOCABULARY[wanted.model] // 60))),
    }

    for copies in (1, 8):
        chosen = prompts[: 32 // copies]
        width = max(map(len, chosen))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in chosen])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chosen])
        for ending, (longest, stop) in endings.items():

            def ours(chosen=chosen, copies=copies, longest=longest, stop=stop) -> dict[str, float]:  # type: ignore[no-untyped-def]
                sampling = Sampling(longest, stop=stop)
                found = sample(lm, traits, chosen, sampling, copies=copies, rows=32)
                return {"records": float(sum(len(a.tokens) for answers in found for a in answers))}

            def theirs(ids=ids, mask=mask, copies=copies, longest=longest, stop=stop) -> dict[str, float]:  # type: ignore[no-untyped-def]
                made = plain.generate(
                    ids, attention_mask=mask, max_new_tokens=longest, do_sample=True, top_k=0,
                    num_return_sequences=copies, pad_token_id=0, eos_token_id=list(stop) or None,
                )[:, ids.shape[1] :]  # fmt: skip
                ends = torch.isin(made, torch.tensor(stop, dtype=torch.int64)).long()
                return {"records": float((ends.cumsum(1) - ends == 0).sum())}  # the first end token counts

            found = paired({"espalier": ours, "transformers generate": theirs}, wanted.rounds)
            for numbers in found.values():
                numbers["tokens_per_second"] = numbers["records"] / numbers["seconds"]
            report(
                f"decode {wanted.model} {len(chosen)}x{copies} {ending}",
                found,
                "tokens_per_second",
                "espalier",
            )


if __name__ == "__main__":
    main()
