"""Random forests of every shape: nested prefixes, equal branches, branches that end inside others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from espalier.trees import Path, Tree

Forest = Callable[..., list[Tree]]


def random_paths(rng: np.random.Generator, branches: int, longest: int) -> list[Path]:
    paths: list[Path] = []
    for _ in range(branches):
        prefix: list[int] = []
        if paths and rng.random() < 0.85:
            other = list(paths[rng.integers(len(paths))][0])
            prefix = other[: rng.integers(len(other) + 1)]
        tail = rng.integers(0, 3, rng.integers(0 if prefix else 1, longest)).tolist()
        tokens = prefix + tail
        kind = rng.integers(4)
        if kind == 0:
            trained = [False] * len(tokens)
        elif kind == 1:
            trained = [bool(x) for x in rng.random(len(tokens)) < 0.4]
        else:
            first = rng.integers(1, len(tokens) + 1)
            trained = [False] * first + [True] * (len(tokens) - first)
        trained[0] = False
        paths.append((tokens, trained))
    return paths


@pytest.fixture(scope="session")
def forest() -> Forest:
    def make(seed: int, trees: int = 3, branches: int = 5, longest: int = 9) -> list[Tree]:
        rng = np.random.default_rng(seed)
        made = []
        for i in range(trees):
            paths = random_paths(rng, int(rng.integers(1, branches + 1)), longest)
            width = max(sum(flags) for _, flags in paths)
            extras = {
                "scores": torch.from_numpy(rng.random(len(paths))),
                "old_logprobs": torch.from_numpy(rng.random((len(paths), width))),
            }
            made.append(Tree.join(paths, source=f"forest:{i}", extras=extras))
        return made

    return make
