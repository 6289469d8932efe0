"""The shelf against lists in memory: spans, draws, and what a draw may never return."""

from __future__ import annotations

import random
from collections import Counter

from espalier.corpora.prepare.shelf import Shelf, _order


def filled(groups: list[tuple[tuple[str, ...], str]]) -> Shelf:
    shelf = Shelf()
    for group, text in groups:
        shelf.add(group, text, text)
    shelf.arrange()
    return shelf


def test_spans_hold_exactly_the_groups_that_begin_with_the_names() -> None:
    rng = random.Random(0)
    names = ["a", "ab", "b", "论语", "论"]
    items = [((rng.choice(names), rng.choice(names)), f"{i}") for i in range(200)]
    with filled(items) as shelf:
        assert len(shelf) == 200
        for prefix in [(), *((n,) for n in names), *((n, m) for n in names for m in names)]:
            wanted = {text for group, text in items if group[: len(prefix)] == prefix}
            start, end = shelf.span(*prefix)
            assert {shelf._at(position) for position in range(start, end)} == wanted


def test_draws_are_uniform_over_inside_without_outside() -> None:
    items = [(("p", g), f"{g}{i}") for g in "abc" for i in range(10)]
    with filled(items) as shelf:
        drawn: Counter[str] = Counter()
        for turn in range(4000):
            found = shelf.draw(
                random.Random(turn), [shelf.span("p")], [shelf.span("p", "b")], avoid={"a0"}, number=2
            )
            assert len(set(found)) == 2
            drawn.update(found)
        assert set(drawn) == {f"{g}{i}" for g in "ac" for i in range(10)} - {"a0"}
        wanted = 8000 / 19
        assert all(abs(count - wanted) < 6 * wanted**0.5 for count in drawn.values())


def test_a_draw_gives_all_there_is_and_no_more() -> None:
    with filled([(("x",), "one"), (("x",), "two"), (("x",), "one")]) as shelf:
        assert sorted(shelf.draw(random.Random(1), [shelf.span("x")], number=5)) == ["one", "two"]
        assert shelf.draw(random.Random(1), [shelf.span("y")], number=5) == []


def test_the_sparse_order_is_a_permutation() -> None:
    for n in (0, 1, 2, 7, 50):
        assert sorted(_order(random.Random(n), n)) == list(range(n))


def test_items_come_back_in_their_order_and_by_key() -> None:
    with Shelf() as shelf:
        for group, key, text in (("b", "2", "first"), ("a", "1", "second"), ("b", "1", "third")):
            shelf.add((group,), key, text, note=f"{text}!")
        shelf.arrange()
        assert [text for _, _, text, _ in shelf.items()] == ["first", "second", "third"]
        assert next(iter(shelf.by_key())) == (("a",), "1", "second", "second!")
        assert shelf.texts("1") == {"second", "third"}
