"""Packing loses nothing, keeps the limit, wastes little, and depends on nothing but the sizes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.trees import pack
from espalier.trees.packing import spread


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_no_item_is_lost_and_only_lone_giants_are_over_the_limit(sizes: list[int], limit: int) -> None:
    rows = pack(sizes, limit)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    for row in rows:
        assert sum(sizes[i] for i in row) <= limit or len(row) == 1
        assert row == sorted(row)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert rows == pack(list(sizes), limit)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_rows_are_within_the_proven_bound_of_the_optimum(sizes: list[int]) -> None:
    limit = 12

    def best(rest: list[int], rooms: tuple[int, ...]) -> int:
        if not rest:
            return len(rooms)
        head, tail = rest[0], rest[1:]
        tries = [best(tail, (*rooms, limit - head))]
        for i, room in enumerate(rooms):
            if room >= head and room not in rooms[:i]:
                tries.append(best(tail, (*rooms[:i], room - head, *rooms[i + 1 :])))
        return min(tries)

    optimum = best(sorted(sizes, reverse=True), ())
    assert len(pack(sizes, limit)) <= 11 / 9 * optimum + 6 / 9


@pytest.mark.parametrize("seed", range(5))
def test_many_small_items_fill_the_rows(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [min(900, max(8, int(rng.lognormvariate(4.5, 0.8)))) for _ in range(2000)]
    rows = pack(sizes, 1024)
    assert sum(sizes) / (1024 * len(rows)) >= 0.97


def test_exact_fits_leave_nothing_over() -> None:
    assert pack([6, 4, 7, 3, 5, 5], 10) == [[0, 1], [2, 3], [4, 5]]
    assert pack([3, 20, 7], 10) == [[0, 2], [1]]
    assert pack([], 10) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(1, 3))
def test_rows_of_like_length_lose_nothing_and_keep_grahams_bound(sizes: list[int], count: int) -> None:
    count = min(count, len(sizes))
    rows = spread(sizes, count)
    assert len(rows) == count and all(rows)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))

    def largest(choice: Sequence[int]) -> int:
        return max(
            sum(size for size, row in zip(sizes, choice, strict=True) if row == n) for n in range(count)
        )

    best = min(largest(choice) for choice in itertools.product(range(count), repeat=len(sizes)))
    found = max(sum(sizes[i] for i in row) for row in rows)
    assert best <= found <= (4 / 3 - 1 / (3 * count)) * best + 1e-9
