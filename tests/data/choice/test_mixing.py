"""Mixing and splitting by counting, by brute force and by what must not depend on order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from espalier.data.choice.mixing import PHASES, draws, takes
from espalier.data.read.sources import DatasetSpec
from espalier.errors import UserError
from tests.data.listed import load_records


def order_of(sizes: list[int], weights: list[float], until: str, seed: int) -> list[tuple[int, int]]:
    return list(draws(sizes, weights, until, seed))


def test_sources_come_as_often_as_their_weights_say() -> None:
    drawn = Counter(source for source, _ in order_of([9000, 9000, 9000], [1, 2, 6], "first", seed=1))
    total = drawn.total()
    assert drawn[2] == 9000
    assert drawn[0] / total == pytest.approx(1 / 9, abs=0.01) and drawn[1] / total == pytest.approx(
        2 / 9, abs=0.01
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_end_is_where_it_is_said_to_be(seed: int) -> None:
    sizes = [3, 40, 7]
    first = order_of(sizes, [1, 1, 1], "first", seed)
    counts = Counter(source for source, _ in first)
    assert any(counts[source] == size for source, size in enumerate(sizes))
    assert all(counts[source] <= size for source, size in enumerate(sizes)) and len(set(first)) == len(first)
    every = order_of(sizes, [1, 1, 1], "all", seed)
    assert set(every) == {(source, index) for source, size in enumerate(sizes) for index in range(size)}
    assert set(every[:-1]) != set(every), "it stops with the last record that was missing"
    for source, size in enumerate(sizes):
        order = [index for place, index in every if place == source]
        assert order == [number % size for number in range(len(order))]
    assert order_of(sizes, [1, 1, 1], "all", seed) == every != order_of(sizes, [1, 1, 1], "all", seed + 100)


def test_three_stages_share_one_set_and_no_prompt() -> None:
    keys = [f"问题{number}" for number in range(5000)]
    taken = {
        kind: {key for key in keys if takes((2, 4, 4), kind, key, 0)}
        for kind in ("chat", "preference", "prompt")
    }
    assert sum(map(len, taken.values())) == 5000 and set().union(*taken.values()) == set(keys)
    shares = [len(found) / 5000 for found in taken.values()]
    assert shares == pytest.approx([0.2, 0.4, 0.4], abs=0.02)
    assert not any(takes((0, 1, 1), "chat", key, 0) for key in keys)
    assert set(PHASES.values()) == {0, 1, 2}
    for wrong in ((1, 2), (1, -1, 1), (0, 0, 0)):
        with pytest.raises(UserError, match="wanted three shares"):
            takes(wrong, "chat", "x", 0)


def test_a_loaded_set_is_mixed_and_split_with_an_account(tmp_path: Path) -> None:
    for name, number in (("a", 10), ("b", 200)):
        rows = [{"prompt": f"{name}{i}", "chosen": "x", "rejected": "y"} for i in range(number)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    specs = [DatasetSpec(str(tmp_path / "a.json"), weight=3.0), DatasetSpec(str(tmp_path / "b.json"))]
    first = load_records(specs, "preference", mix="first", seed=2)
    assert first.counts[specs[0].path] == 10 and first.left_out.total() == 200 - first.counts[specs[1].path]
    every = load_records(specs, "preference", mix="all", seed=2)
    assert every.counts[specs[1].path] == 200 and every.counts[specs[0].path] > 300
    assert load_records(specs, "preference").counts == {specs[0].path: 30, specs[1].path: 200}

    parts = {
        kind: load_records(specs[1:], kind, data_split=[2, 4, 4]) for kind in ("chat", "preference", "prompt")
    }
    prompts = {kind: {r.prompt[0].content for r in part.records}
               for kind, part in parts.items()}  # fmt: skip
    assert all(record.kind == "preference" for record in parts["preference"].records)
    assert sum(map(len, prompts.values())) == 200 == len(set().union(*prompts.values()))
    assert all(part.left_out.total() + len(part.records) == 200 for part in parts.values())
    assert len(load_records(specs, "chat", max_samples=5).records) == 20  # 5 of each, the first three times
