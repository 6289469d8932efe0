"""Which trees a step gets: all of them once an epoch, in an order that only the seed decides, each rank its own part."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from espalier.data.steps.feed import DatasetFeed, Rows, packed, shuffled
from espalier.data.store.stack import Forest, listed
from espalier.trees import Batch, Tree, lay_out_padded, lay_out_tree
from tests.data.listed import load_records

SIZES = [int(n) for n in np.random.default_rng(0).lognormal(2.2, 0.7, 97).clip(2, 64)]
TREES = [Tree.from_path([i] * n, [False] + [True] * (n - 1), source=f"t:{i}") for i, n in enumerate(SIZES)]
WAYS: list[dict[str, Any]] = [{"trees_per_step": 8}, {"trees_per_step": None, "tokens_per_step": 150}]


def numbers(batches: Sequence[Batch]) -> list[int]:
    """The trees in batches that count."""
    found = [set(batch.input_ids[batch.position_ids == 0].tolist()) for batch in batches if batch.weight]
    return [number for one in found for number in sorted(one)]


def feed(way: dict[str, Any], rank: int = 0, world: int = 1, row: int = 64, **options: Any) -> DatasetFeed:
    rows = Rows(lay_out_tree, row, rank, world)
    return DatasetFeed(options.pop("trees", TREES), rows, **way, **options)


def test_a_shuffle_is_numpys_permutation_in_half_of_the_memory() -> None:
    for seed in ([3], [3, 7]):
        expected = np.random.default_rng(seed).permutation(1000)
        assert (shuffled(1000, seed) == expected).all() and shuffled(1000, seed).dtype == np.int32


@pytest.mark.parametrize("way", WAYS)
def test_an_epoch_has_every_tree_once_and_the_next_another_order(way: dict[str, Any]) -> None:
    one = feed(way, epochs=2)
    steps = [numbers(batches) for batches in one.steps()]
    assert len(steps) == one.total_steps
    half = len(steps) // 2
    first = [number for step in steps[:half] for number in step]
    second = [number for step in steps[half:] for number in step]
    assert sorted(first) == sorted(second) == list(range(97)) and first != second
    assert steps == [numbers(batches) for batches in feed(way, epochs=2).steps()]
    assert steps != [numbers(batches) for batches in feed(way, epochs=2, seed=1).steps()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_are_disjoint_and_together_everything(way: dict[str, Any], world: int) -> None:
    alone = [Counter(numbers(batches)) for batches in feed(way, world=world, rank=0).steps()]
    ranks = [list(feed(way, rank, world).steps()) for rank in range(world)]
    assert len({len(steps) for steps in ranks}) == 1
    everything: Counter[int] = Counter()
    for step in zip(*ranks, strict=True):
        assert len({len(batches) for batches in step}) == 1, "as many micro-batches on every rank"
        everything.update(number for batches in step for number in numbers(batches))
    assert everything == Counter(range(97)) and len(alone) == len(ranks[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("after", [1, 5, 11, 14])
def test_an_order_goes_on_exactly_after_a_stop(way: dict[str, Any], after: int) -> None:
    whole = [numbers(batches) for batches in feed(way, epochs=2).steps()]
    begun = feed(way, epochs=2)
    steps = begun.steps()
    before = [numbers(next(steps)) for _ in range(after)]
    place = begun.place()
    resumed = feed(way, epochs=2)
    resumed.restore(place)
    assert before + [numbers(batches) for batches in resumed.steps()] == whole


def of_all(way: dict[str, Any], world: int, place: dict[str, Any] | None = None) -> list[list[list[int]]]:
    """Of each step, on each of so many ranks, the trees that count; from a place on."""
    feeds = [feed(way, rank, world, epochs=2) for rank in range(world)]
    for one in feeds:
        if place is not None:
            one.restore(place)
    return [[numbers(batches) for batches in step] for step in zip(*(f.steps() for f in feeds), strict=True)]


def together(step: list[list[int]]) -> list[int]:
    return sorted(number for one in step for number in one)


@pytest.mark.parametrize("way", [*WAYS, {"trees_per_step": None, "tokens_per_step": 40}])
def test_a_step_has_the_same_trees_on_any_number_of_ranks(way: dict[str, Any]) -> None:
    alone = [together(step) for step in of_all(way, 1)]
    for world in (2, 3, 4, 8):
        found = of_all(way, world)
        assert [together(step) for step in found] == alone
        assert any(len(step[0]) != len(together(step)) for step in found), "they share the work"


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_with_another_number_of_ranks(way: dict[str, Any]) -> None:
    """8 -> 4 -> 1 -> 2, stopped in the first epoch and in the second: every tree once an epoch, in the same steps."""
    whole = [together(step) for step in of_all(way, 1)]
    seen, place, begun = [], None, 0
    for world, until in ((8, 3), (4, 9), (1, len(whole) - 2), (2, len(whole))):
        feeds = [feed(way, rank, world, epochs=2) for rank in range(world)]
        for one in feeds:
            if place is not None:
                one.restore(place)
        steps = zip(*(one.steps() for one in feeds), strict=True)
        seen += [together([numbers(batches) for batches in next(steps)]) for _ in range(until - begun)]
        place, begun = feeds[0].place(), until
        assert all(one.place() == place for one in feeds)
    assert seen == whole
    assert Counter(number for step in seen for number in step) == Counter(dict.fromkeys(range(97), 2))


def test_a_place_among_other_rows_is_refused() -> None:
    """Rows of half the length: the same index stands for other trees, so some would come twice and others never."""
    one = feed(WAYS[1], row=150)
    steps = one.steps()
    for _ in range(3):
        next(steps)
    two = feed(WAYS[1], row=75)
    with pytest.raises(ValueError, match="another layout fills other rows"):
        two.restore(one.place())
    # An earlier version did not note it.
    two.restore({key: value for key, value in one.place().items() if key != "division"})


def test_only_a_ranks_own_trees_are_read() -> None:
    read: list[int] = []
    inner = listed(TREES)
    forest = Forest(lambda at: read.append(at) or TREES[at], inner._sizes, len(TREES))
    for rank in range(2):
        read.clear()
        one = feed({"trees_per_step": 32}, rank, 2, trees=forest)
        assert not read, "sizes are known without the trees"
        mine = [number for batches in one.steps() for number in numbers(batches)]
        fillers = len(read) - len(mine)
        assert len(mine) < 97 and fillers < 20


def test_a_step_never_has_more_tokens_than_asked_for() -> None:
    for world in (1, 2):
        for tokens in (40, 150, 1000):
            steps = [
                list(feed({"trees_per_step": None, "tokens_per_step": tokens}, rank, world).steps())
                for rank in range(world)
            ]
            for step in zip(*steps, strict=True):
                batches = [batch for one in step for batch in one if batch.weight]
                # What is larger than its share of the step comes in place of a whole row.
                share = tokens // math.ceil(tokens / 64)
                larger = sum(max(SIZES[n] - share, 0) for batch in batches for n in numbers([batch]))
                assert sum(batch.tokens_in_rows for batch in batches) <= tokens + larger
                assert all(batch.tokens_in_rows <= 64 for batch in batches)


def test_padded_rows_count_every_path() -> None:
    pairs = [Tree.join([([1, 2, 3], [False, True, True]), ([1, 4], [False, True])])] * 3
    assert Rows(lay_out_tree, 9).sizes(pairs).tolist() == [5 - 1] * 3
    assert Rows(lay_out_padded, 9).sizes(pairs).tolist() == [5] * 3


def test_without_packing_every_tree_is_a_micro_batch() -> None:
    for way in WAYS:
        batches = [batch for step in feed(way, row=1).steps() for batch in step]
        assert all(batch.n_trees == 1 for batch in batches) and len(batches) == 97


def test_rows_of_a_long_set_are_full() -> None:
    draw = np.random.default_rng(5)
    sizes = draw.lognormal(5.2, 0.8, 30_000).clip(10, 2048).astype(np.int32)
    rows = packed(sizes, 2048, 0)
    assert sorted(rows.members.tolist()) == list(range(len(sizes)))
    filled = [int(sizes[rows.row(at)].sum()) for at in range(len(rows))]
    assert max(filled) <= 2048 and sum(filled) / (2048 * len(rows)) > 0.97
    assert (packed(sizes, 2048, 0).members == rows.members).all()
    # A row's trees come from anywhere near in the shuffle, which is from anywhere in the set.
    spread = [np.ptp(rows.row(at)) for at in range(0, len(rows), 50) if len(rows.row(at)) > 5]
    assert np.median(spread) > len(sizes) / 2


@pytest.mark.slow
def test_rows_of_real_records_are_full(shared: Any, aquila: Any) -> None:
    from espalier.data.encode.templates import choose_template
    from espalier.data.encode.tokenise import Encoder, encode_all
    from espalier.data.read.specs import parse_specs

    paths = [str(shared / "data" / name) for name in ("alpaca_zh", "sharegpt_zh")]
    records = load_records(parse_specs(paths), "chat", skip_bad=True).records[::4]
    trees, _ = encode_all(records, Encoder(aquila, choose_template(aquila), 2048, "trim"))
    sizes = np.tile(listed(trees).sizes(paths=False), 8)  # as many as there are in a real set
    rows = packed(sizes, 2048, 0)
    assert sizes.sum() / (2048 * len(rows)) > 0.97
