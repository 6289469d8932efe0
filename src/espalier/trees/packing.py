"""Which trees go into one row together: best fit, largest first, or rows of like length; a tree is never cut."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heapreplace


def pack(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of the items of each row; every item stands in exactly one row.

    Best fit decreasing: each item, largest first, goes into the fullest row that still has room. At most
    11/9 of the smallest possible number of rows + 6/9 (Dosa 2007, for first fit decreasing; best fit
    shares the bound). An item larger than the limit goes alone. Rows and the items in them keep the order
    of their first item, so the result depends on nothing but the sizes.

    Args:
        sizes: tokens of each item, at least 1.
        limit: tokens that a row may hold.
    """
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    rows: list[list[int]] = []
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        at = bisect_left(room, (sizes[item], -1))
        if at < len(room):
            left, row = room.pop(at)
            rows[row].append(item)
        else:
            left, row = max(limit, sizes[item]), len(rows)
            rows.append([item])
        if left - sizes[item] > 0:
            insort(room, (left - sizes[item], row))
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


def spread(sizes: Sequence[int], rows: int) -> list[list[int]]:
    """Indices of the items of so many rows of like length, none of them empty.

    Longest first, each to the row that has least: the largest row is at most 4/3 - 1/(3 rows) of the smallest possible
    (Graham 1969). Rows and the items in them keep the order of their first item.

    Args:
        sizes: tokens of each item, at least 1.
        rows: at most as many as there are items.
    """
    made: list[list[int]] = [[] for _ in range(rows)]
    held = [(0, row) for row in range(rows)]
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        tokens, row = held[0]
        made[row].append(item)
        heapreplace(held, (tokens + sizes[item], row))
    return sorted((sorted(row) for row in made), key=lambda row: row[0])
