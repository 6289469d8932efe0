"""Groups of prompts against all ways to cut them, and what is kept when rows are dropped against a new start."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from espalier.models.grouping import alike
from espalier.models.memory import Memory


@pytest.mark.parametrize("call", [0, 7, 1000])
def test_groups_are_the_cheapest_of_all_cuts(call: int) -> None:
    draw = random.Random(call)
    for n in range(1, 9):
        lengths = [draw.randrange(1, 30) for _ in range(n)]

        def cost(groups: list[tuple[int, int]], lengths: list[int] = lengths) -> int:
            return sum(max(lengths[a:b]) * (b - a) + call for a, b in groups)

        found = alike(lengths, call)
        assert [i for a, b in found for i in range(a, b)] == list(range(n))
        cuts = (
            list(itertools.pairwise((0, *inner, n)))
            for k in range(n)
            for inner in itertools.combinations(range(1, n), k)
        )
        assert cost(found) == min(cost(cut) for cut in cuts)


def attended(lengths: list[int], rows: list[int], drops: list[list[int]], steps: int) -> torch.Tensor:
    """Random keys of rows (by prompt), attended to over `steps` steps; rows are dropped after each step."""
    maker = torch.Generator().manual_seed(0)
    kinds, groups, size = 2, 3, 4
    prompts = torch.randn(2, 1, kinds, sum(lengths), size, generator=maker)
    memory = Memory(1, lengths, 3, steps, torch.float32, torch.device("cpu"))
    memory.reading = (0, len(lengths))
    memory.layers[0].update(*prompts)
    out = torch.empty(0)
    told = torch.randn(steps, 3, 3 * len(lengths), kinds * groups, size, generator=maker)
    for step in range(steps):
        memory.step = step
        query, key, value = (t[rows][:, :, None] for t in told[step])
        held = memory.layers[0].update(key[:, :kinds], value[:, :kinds])
        out = memory.attend(query, *held, 0.5)
        # Truth: one softmax over the prompt and the answer of each row.
        for i, row in enumerate(rows):
            start = sum(lengths[: row // 3])
            whole = [
                torch.cat([p[0, :, start : start + lengths[row // 3]], told[: step + 1, j, row, :kinds].transpose(0, 1)], 1)
                for j, p in ((1, prompts[0]), (2, prompts[1]))
            ]  # fmt: skip
            keys, values = (x.repeat_interleave(groups, 0) for x in whole)
            weights = torch.einsum("hd,htd->ht", query[i, :, 0], keys * 0.5).softmax(-1)
            truth = torch.einsum("ht,htd->hd", weights, values)
            torch.testing.assert_close(out[i, :, 0], truth, rtol=1e-5, atol=1e-5)
        if step < len(drops):
            memory.step = step + 1
            memory.keep(torch.tensor(drops[step]))
            rows = [rows[i] for i in drops[step]]
    return out


@pytest.mark.parametrize("lengths", [[9, 9, 9, 9], [500, 20, 19, 3], [1, 2, 3, 700]])
def test_attention_is_one_softmax_whichever_rows_are_left(lengths: list[int]) -> None:
    everyone = list(range(12))
    attended(lengths, everyone, [], 2)
    # One copy of one, two of another, none of the second prompt; then a prompt is lost at each end.
    out = attended(lengths, everyone, [[0, 1, 2, 7, 9, 10], [3, 4], [1]], 5)
    assert out.shape == (1, 6, 1, 4)
