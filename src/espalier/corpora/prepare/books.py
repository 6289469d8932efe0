"""The books of chinese-poetry as a table: where they lie, who wrote them, what they are called.

Folders carry their present Chinese names or the older Latin ones. A file belongs to a book by its own name and the
name of the folder that it lies in, never by what stands elsewhere in its path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from espalier.corpora.prepare.reading import text_of

CLASSIC, OLD, CHU, CI, QU = "经书", "古体诗", "楚辞", "词", "曲"
FIVE, SEVEN = "五言诗", "七言诗"
PIECES = (CLASSIC, CHU)
"""Genres counted in 篇; the others are counted in 首."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Book:
    """One book. `genre` None: by the length of a poem's first line. `author` "": the row's own."""

    name: str
    folders: tuple[str, ...]
    files: str
    genre: str | None
    title: Callable[[Row], str]
    author: str = ""
    body: str = "paragraphs"
    traditional: bool = False
    """Whether it is in traditional characters."""


def _field(*names: str) -> Callable[[Row], str]:
    """The first of these fields that is not empty."""
    return lambda row: next((text for name in names if (text := text_of(row, name).strip())), "")


def _joined(*names: str) -> Callable[[Row], str]:
    return lambda row: "-".join(text_of(row, name) for name in names)


BOOKS = (
    Book("论语", ("论语", "lunyu"), "lunyu.json", CLASSIC, _field("chapter"), "孔子"),
    Book(
        "大学",
        ("四书五经", "sishuwujing"),
        "daxue.json",
        CLASSIC,
        _field("chapter"),
        "曾子",
        traditional=True,
    ),
    Book(
        "孟子",
        ("四书五经", "sishuwujing"),
        "mengzi.json",
        CLASSIC,
        _field("chapter"),
        "孟子",
        traditional=True,
    ),
    Book(
        "中庸",
        ("四书五经", "sishuwujing"),
        "zhongyong.json",
        CLASSIC,
        _field("chapter"),
        "孔伋",
        traditional=True,
    ),
    Book("曹操", ("曹操诗集", "caocaoshiji"), "caocao.json", OLD, _field("title"), "曹操"),
    Book(
        "诗经",
        ("诗经", "shijing"),
        "shijing.json",
        OLD,
        _joined("chapter", "section", "title"),
        "诗经",
        "content",
    ),
    Book("楚辞", ("楚辞", "chuci"), "chuci.json", CHU, _joined("section", "title"), "", "content"),
    Book("诗", ("全唐诗", "shi", "json"), "poet*.json", None, _field("title"), traditional=True),
    Book("唐诗补录", ("全唐诗", "shi", "json"), "唐诗补录.json", None, _field("title"), traditional=True),
    Book("词", ("宋词", "ci"), "ci*.json", CI, _field("rhythmic")),
    Book("纳兰性德", ("纳兰性德", "nalanxingde"), "*.json", CI, _field("title"), "", "para"),
    Book("花间集", ("huajianji",), "*juan.json", CI, _field("title", "rhythmic")),
    Book("南唐", ("nantang",), "poetrys.json", CI, _field("title", "rhythmic")),
    Book("元曲", ("元曲", "yuanqu"), "yuanqu.json", QU, _field("title")),
)


def book_of(path: PurePath) -> Book | None:
    """The book of a file; None where no book claims it.

    >>> book_of(PurePath("五代诗词/huajianji/huajianji-1-juan.json")).name
    '花间集'
    >>> book_of(PurePath("全唐诗/authors.tang.json")) is None
    True
    """
    folder = path.parent.name
    for book in BOOKS:
        if folder in book.folders and fnmatchcase(path.name, book.files):
            return book
    return None


def genre_of(book: Book, first_line: str) -> str:
    """A book's genre, or, for poems, the predecessors' rule: a first line of 12 characters is five-character verse.

    Twelve characters are two halves of five with their marks. The rule calls all else seven-character verse, which
    is wrong for four-character hymns and for irregular verse; `metre` names those.
    """
    if book.genre is not None:
        return book.genre
    return FIVE if len(first_line) == 12 else SEVEN


def metre(book: Book, first_line: str) -> str:
    """As `genre_of`, but each regular metre by its name and irregular verse as 杂言诗."""
    names = {10: "四言诗", 12: FIVE, 14: "六言诗", 16: SEVEN}
    return book.genre if book.genre is not None else names.get(len(first_line), "杂言诗")
