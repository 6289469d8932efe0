"""Forward and backward of a T5 on questions with several answers each, against transformers' own call on every pair.

python benchmarks/encoder_decoder.py [--answers 1 2 4 8] [--questions 4] [--rounds 3]

Both sides get the same rows in one batch, padded. Here a row is question, mark and answer, and equal questions are
encoded once; transformers is given ``input_ids`` and ``labels``. The losses are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import random

import torch
from torch import nn

from _common import lengths, paired, report
from espalier.models import load
from espalier.models.forward import TreeModel, Want
from espalier.models.probe import probe
from espalier.trees import Tree, lay_out_padded

VOCABULARY, END, START = 8192, 1, 0
SIZES = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 6, "num_heads": 4}


def pairs(questions: int, answers: int) -> list[tuple[list[int], list[list[int]]]]:
    """Questions of about 180 tokens, answers of about 60."""
    draw = random.Random(0)
    long, short = lengths(questions, 180, 1, 512), lengths(questions * answers, 60, 2, 128)
    made = []
    for i, n in enumerate(long):
        mine = short[i * answers : (i + 1) * answers]
        made.append(
            (
                draw.choices(range(3, VOCABULARY), k=n),
                [draw.choices(range(3, VOCABULARY), k=size) for size in mine],
            )
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    ids = {"pad_token_id": START, "eos_token_id": END}
    torch.manual_seed(0)
    lm = load.new_lm({"model_type": "t5", **SIZES}, VOCABULARY, ids)
    model = TreeModel(lm, probe(lm))
    for answers in asked.answers:
        compare(model, lm, pairs(asked.questions, answers), asked.rounds)


def compare(
    model: TreeModel, lm: nn.Module, held: list[tuple[list[int], list[list[int]]]], rounds: int
) -> None:
    trees = []
    for question, said in held:
        before = [*question, END, START]
        paths = [([*before, *a, END], [False] * len(before) + [True] * (len(a) + 1)) for a in said]
        trees.append(Tree.join(paths))
    batch = lay_out_padded(trees)
    rows = [(question, answer) for question, said in held for answer in said]
    asked = _padded([[*question, END] for question, _ in rows], START)
    mask = _padded([[1] * (len(question) + 1) for question, _ in rows], 0)
    labels = _padded([[*answer, END] for _, answer in rows], -100)

    def ours() -> torch.Tensor:
        said = model(batch, Want()).logprobs
        assert said is not None
        return -said.sum() / batch.n_trained

    def theirs() -> torch.Tensor:
        return lm(input_ids=asked, attention_mask=mask, labels=labels).loss

    with torch.no_grad():
        assert abs(float(ours()) - float(theirs())) < 1e-4, "both sides must compute the same"

    def step(loss: object) -> dict[str, float]:
        lm.zero_grad()
        loss().backward()  # type: ignore[operator]
        return {"records": float(len(rows))}

    sides = {"espalier": lambda: step(ours), "transformers, a row a pair": lambda: step(theirs)}
    per_question = len(rows) // len(held)
    found = paired(sides, rounds)
    for numbers in found.values():
        numbers["answers_per_second"] = numbers["records"] / numbers["seconds"]
    report(f"encoder-decoder {per_question} answers", found, "answers_per_second", "espalier")


def _padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


if __name__ == "__main__":
    main()
