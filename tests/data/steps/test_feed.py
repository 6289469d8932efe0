"""Which trees a step gets: all of them once an epoch, in an order that only the seed decides, each rank its own part."""

from __future__ import annotations

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


def test_a_place_among_rows_that_another_number_of_processes_fills_is_refused() -> None:
    """Rows of half the length: the same index stands for other trees, so some would come twice and others never."""
    one = feed(WAYS[1], world=1, row=150)
    steps = one.steps()
    for _ in range(3):
        next(steps)
    two = feed(WAYS[1], world=2, row=75)
    with pytest.raises(ValueError, match="as many processes as before"):
        two.restore(one.place())
    two.restore(
        {key: value for key, value in one.place().items() if key != "division"}
    )  # an earlier version's
    batches = feed(
        WAYS[0], world=2
    )  # trees shuffled one by one: an index is the same tree whatever the ranks
    begun = feed(WAYS[0])
    next(begun.steps())
    batches.restore(begun.place())


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
                for batch in batches:  # what is larger than its share of the step is alone in its row
                    assert batch.tokens_in_rows * len(batches) <= tokens or batch.n_trees == 1
                    assert batch.tokens_in_rows <= 64


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
