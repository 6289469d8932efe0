"""Exact tree attention on a CPU: dense pieces against one dense mask over the row, forward and backward.

python benchmarks/attention.py [--tokens 1024 2048 4096]
"""

from __future__ import annotations

import argparse
import random

import torch

from _common import paired, report
from espalier.trees import Tree, lay_out_tree
from espalier.trees.mask import additive_mask
from espalier.trees.segments import plan, tree_attention

HEADS, SIZE = 4, 64


def forest(kind: str, tokens: int) -> list[Tree]:
    """Trees of one kind until the row is full."""
    draw = random.Random(0)
    shape = {
        "documents": (220, 1, 60),
        "pairs": (180, 2, 80),
        "groups of 8": (180, 8, 60),
        "exam, 119": (600, 119, 4),
    }
    prompt, branches, answer = shape[kind]
    found, size = [], 0
    while size < tokens:
        ids = [draw.randrange(9) for _ in range(prompt)]
        paths = [
            (ids + [draw.randrange(9) for _ in range(answer)], [False] * prompt + [True] * answer)
            for _ in range(branches)
        ]
        found.append(Tree.join(paths))
        size += found[-1].n_tokens
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    for tokens in parser.parse_args().tokens:
        for kind in ("documents", "pairs", "groups of 8", "exam, 119"):
            batch = lay_out_tree(forest(kind, tokens))
            length = batch.input_ids.shape[1]
            q, k, v = (torch.randn(1, HEADS, length, SIZE, requires_grad=True) for _ in range(3))
            mask = additive_mask(batch.subtree_end, batch.position_ids, torch.float32)
            sides = {}
            for small in (32, 128, 256):
                pieces = plan(batch.subtree_end[0], small)

                def ours(pieces=pieces) -> dict[str, float]:  # type: ignore[no-untyped-def]
                    tree_attention(q, k, v, pieces, SIZE**-0.5).sum().backward()
                    return {"records": 1.0, "pieces": float(len(pieces))}

                sides[f"espalier, small {small}"] = ours

            def dense() -> dict[str, float]:
                torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
                return {"records": 1.0, "pieces": 1.0}

            sides["one dense mask"] = dense
            found = paired(sides, rounds=5)
            for numbers in found.values():
                numbers["per_second"] = 1 / numbers["seconds"]
            report(f"attention {kind} {length}", found, "per_second", "espalier, small 128")


if __name__ == "__main__":
    main()
