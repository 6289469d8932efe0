"""A corpus put away on disk while it is prepared: in groups, to draw wrong answers from, in constant memory.

A temporary SQLite file holds the items; memory holds the groups' names and sizes only. `arrange` gives every item
a position such that groups which begin with the same names stand side by side, so "any item of this book" and
"any item of another book" are spans of positions, and a uniform draw from them is one random number.
"""

from __future__ import annotations

import random
import sqlite3
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from espalier.disk.temporary import temporary_folder

Group = tuple[str, ...]
Span = tuple[int, int]

_LAST = "\U0010ffff"  # sorts behind every name


class Shelf:
    """Items (group, key, text, note); use it in a `with`, which removes the file.

    >>> with Shelf() as shelf:
    ...     for text in ("雨", "风", "山"):
    ...         shelf.add(("1",), text, text)
    ...     shelf.arrange()
    ...     shelf.draw(random.Random(0), [shelf.span("1")], avoid={"雨", "风"}, number=2)
    ['山']
    """

    def __init__(self) -> None:
        self._folder = temporary_folder()
        self._base = sqlite3.connect(Path(self._folder.name) / "shelf.sqlite", isolation_level=None)
        for line in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            "PRAGMA temp_store=FILE",
            "CREATE TABLE items (id INTEGER PRIMARY KEY, grp TEXT, key TEXT, text TEXT, note TEXT)",
            "BEGIN",
        ):
            self._base.execute(line)
        self._groups: list[Group] = []
        self._starts: list[int] = []
        self._total = 0

    def __enter__(self) -> Shelf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._base.close()
        self._folder.cleanup()

    def add(self, group: Group, key: str, text: str, note: str = "") -> None:
        """Puts an item away. `key` is what answers of one question have in common."""
        self._base.execute(
            "INSERT INTO items (grp, key, text, note) VALUES (?, ?, ?, ?)",
            ("\t".join(group), key, text, note),
        )

    def take_out(self, here: str, there: str, *, keys: bool = False) -> list[tuple[str, str]]:
        """Removes from the groups that begin with `here` each item whose text stands in a group of `there`.

        `keys`: or whose key does, and texts count against keys too (a sentence asked for here and given there).
        Returns (note, text) of what was removed; call it before `arrange`.
        """
        run = self._base.execute
        run("CREATE TABLE there (text TEXT PRIMARY KEY) WITHOUT ROWID")
        run("INSERT OR IGNORE INTO there SELECT text FROM items WHERE grp >= ? AND grp < ?", _from_to(there))
        stands = "text IN (SELECT text FROM there)"
        if keys:
            run(
                "INSERT OR IGNORE INTO there SELECT key FROM items WHERE grp >= ? AND grp < ?",
                _from_to(there),
            )
            stands = f"({stands} OR key IN (SELECT text FROM there))"
        chosen = f"grp >= ? AND grp < ? AND {stands}"
        removed = run(f"SELECT note, text FROM items WHERE {chosen} ORDER BY id", _from_to(here)).fetchall()
        run(f"DELETE FROM items WHERE {chosen}", _from_to(here))
        run("DROP TABLE there")
        return removed

    def count(self) -> int:
        """How many items were added."""
        [number] = self._base.execute("SELECT COUNT(*) FROM items").fetchone()
        return int(number)

    def arrange(self) -> None:
        """Gives every item its position; after it nothing is added."""
        run = self._base.execute
        run("CREATE INDEX by_key ON items (key)")
        run("CREATE TABLE arranged (position INTEGER PRIMARY KEY, id INTEGER)")
        run("INSERT INTO arranged (id) SELECT id FROM items ORDER BY grp, id")
        for name, count in run("SELECT grp, COUNT(*) FROM items GROUP BY grp ORDER BY grp"):
            self._groups.append(tuple(name.split("\t")))
            self._starts.append(self._total)
            self._total += count

    def __len__(self) -> int:
        return self._total

    def items(self) -> Iterator[tuple[Group, str, str, str]]:
        """(group, key, text, note) of all items in the order in which they were added."""
        rows = self._base.execute("SELECT grp, key, text, note FROM items ORDER BY id")
        for group, key, text, note in rows:
            yield tuple(group.split("\t")), key, text, note

    def by_key(self) -> Iterator[tuple[Group, str, str, str]]:
        """The same, sorted by key; items of one key in the order in which they were added."""
        rows = self._base.execute("SELECT grp, key, text, note FROM items ORDER BY key, id")
        for group, key, text, note in rows:
            yield tuple(group.split("\t")), key, text, note

    def texts(self, key: str) -> set[str]:
        """The texts of all items with this key."""
        return {text for (text,) in self._base.execute("SELECT text FROM items WHERE key = ?", (key,))}

    def groups(self, *names: str) -> list[Group]:
        """The groups whose names begin with these."""
        return [group for group in self._groups if group[: len(names)] == names]

    def span(self, *names: str) -> Span:
        """The positions (first, behind the last) of all items of the groups whose names begin with these."""
        first = bisect_left(self._groups, names)
        behind = bisect_left(self._groups, (*names, _LAST))
        starts = [*self._starts, self._total]
        return starts[first], starts[behind]

    def draw(
        self,
        chance: random.Random,
        inside: Sequence[Span],
        outside: Sequence[Span] = (),
        *,
        avoid: Collection[str] = (),
        number: int = 1,
    ) -> list[str]:
        """Up to `number` different texts, uniformly from `inside` without `outside` and without the texts of `avoid`.

        The texts of `avoid` must be few against the spans: they are met by drawing again. Fewer than `number` come
        back only where the spans hold no more.
        """
        spans = _without(inside, outside)
        room = sum(end - start for start, end in spans)
        taken = set(avoid)
        drawn: list[str] = []
        for place in _order(chance, room):
            if len(drawn) == number:
                break
            text = self._at(_position(spans, place))
            if text not in taken:
                taken.add(text)
                drawn.append(text)
        return drawn

    def _at(self, position: int) -> str:
        [text] = self._base.execute(
            "SELECT text FROM items WHERE id = (SELECT id FROM arranged WHERE position = ?)", (position + 1,)
        ).fetchone()
        return str(text)


def _from_to(name: str) -> tuple[str, str]:
    """The bounds of all groups whose first name is this one."""
    return name, name + "\n"  # a line feed sorts right behind the tab between names


def _order(chance: random.Random, room: int) -> Iterator[int]:
    """All numbers below `room` in a random order, made as far as it is asked for (a sparse Fisher-Yates)."""
    moved: dict[int, int] = {}
    for done in range(room):
        other = chance.randrange(done, room)
        yield moved.get(other, other)
        moved[other] = moved.pop(done, done)


def _without(inside: Sequence[Span], outside: Sequence[Span]) -> list[Span]:
    """Spans that cover what is in `inside` and not in `outside`, in order; `inside` does not overlap itself."""
    left = sorted(span for span in inside if span[0] < span[1])
    for start, end in outside:
        cut: list[Span] = []
        for first, last in left:
            cut += [(first, min(last, start)), (max(first, end), last)] if start < end else [(first, last)]
        left = [span for span in cut if span[0] < span[1]]
    return left


def _position(spans: Sequence[Span], place: int) -> int:
    for start, end in spans:
        if place < end - start:
            return start + place
        place -= end - start
    raise AssertionError("a place behind all spans")
