"""chinese-poetry: "write a poem in the manner of AUTHOR, called TITLE"; the poem scores 1.

Another work of the author scores 0, another author's work of the genre -1, a work of another genre by another
author -2: one of each, drawn from the same part. Traditional characters become simplified ones (OpenCC's t2s)
in the books that are printed in them. Lines are joined as they are; only a line that ends without a mark gets a
line break behind it, because two verses would run together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from espalier.corpora.made import DEV, TRAIN, CorpusRecord, Division, Omission, Outcomes, one_line, ranking
from espalier.corpora.prepare.books import BOOKS, PIECES, Book, book_of, genre_of
from espalier.corpora.prepare.reading import rows
from espalier.corpora.prepare.shelf import Shelf, Span
from espalier.data.read.files import is_data_file
from espalier.errors import UserError


def poetry(where: Path, division: Division, genre: Callable[[Book, str], str] = genre_of) -> Outcomes:
    """`genre` names a work's genre from its book and first line: `books.genre_of` or `books.metre`.

    Raises `UserError` where no book is found and where OpenCC is not installed.
    """
    root = _root(where)
    with Shelf() as shelf:
        for path in sorted(path for path in root.rglob("*") if path.is_file() and is_data_file(path)):
            book = book_of(path)
            if book is None:
                yield Omission(f"{path}:1", "a file of no known book")
            else:
                yield from _put_away(path, book, genre, shelf, division)
        if not shelf.count():
            raise UserError(
                f"{where}: none of the books of chinese-poetry is here; wanted folders such as "
                f"{', '.join(dict.fromkeys(book.folders[0] for book in BOOKS))}"
            )
        for place, text in shelf.take_out(TRAIN, DEV):
            yield Omission(place, "its text stands in dev too", text)
        shelf.arrange()
        yield from _with_wrong_works(shelf, division)


def _root(where: Path) -> Path:
    """The folder that holds the books' folders: `where`, or the corpus' own folder in it."""
    for name in ("chinese-poetry", "chinese_poetry", "chinese-poetry-master"):
        if (where / name).is_dir():
            return where / name
    return where


def _put_away(
    path: Path, book: Book, genre: Callable[[Book, str], str], shelf: Shelf, division: Division
) -> Iterator[Omission]:
    plain = _simplified() if book.traditional else str
    for entry in rows(path):
        if isinstance(entry, Omission):
            yield entry
            continue
        place, row = entry
        author = plain(one_line(book.author or row.get("author")).strip().replace("\t", " "))
        title = plain(one_line(book.title(row)).strip())
        lines = _lines(row, book.body, plain)
        if lines is None:
            yield Omission(place, f"no list of lines in {book.body!r}", title)
        elif not "".join(lines).strip():
            yield Omission(place, "no text", title)
        elif not title:
            yield Omission(place, "no title", "".join(lines))
        elif not author:
            yield Omission(place, "no author", title)
        else:
            kind = genre(book, lines[0])
            unit = "篇" if kind in PIECES else "首"
            prompt = f"以{author}的风格，写一{unit}{kind}，题为{title}"
            shelf.add((division.part(prompt), kind, author), prompt, _poem(lines), place)


def _lines(row: Mapping[str, Any], name: str, plain: Callable[[str], str]) -> list[str] | None:
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        return None
    return [line for text in value if (line := plain(one_line(text)))]


def _poem(lines: list[str]) -> str:
    """The lines as one text; a line break only where a line does not end with a mark of its own.

    >>> _poem(["关关雎鸠，在河之洲。", "窈窕淑女", "君子好逑。"])
    '关关雎鸠，在河之洲。窈窕淑女\\n君子好逑。'
    """
    *before, last = lines
    return "".join(line + "\n" * line[-1:].isalnum() for line in before) + last


def _with_wrong_works(shelf: Shelf, division: Division) -> Iterator[CorpusRecord]:
    kinds: dict[tuple[str, str], list[str]] = {}
    for part, kind, author in shelf.groups():
        kinds.setdefault((part, author), []).append(kind)
    for (part, kind, author), prompt, text, place in shelf.items():
        chance = division.chance("poetry", prompt, text)
        everything, genre, own = shelf.span(part), shelf.span(part, kind), shelf.span(part, kind, author)
        author_all = [shelf.span(part, other, author) for other in kinds[part, author]]
        right = shelf.texts(prompt)
        answers, taken = [(text, 1.0)], set(right)
        draws: tuple[tuple[float, list[Span], list[Span]], ...] = (
            (0.0, author_all, []),
            (-1.0, [genre], [own]),
            (-2.0, [everything], [genre, *author_all]),
        )
        for score, inside, outside in draws:
            drawn = shelf.draw(chance, inside, outside, avoid=taken)
            taken.update(drawn)
            answers += [(wrong, score) for wrong in drawn]
        yield CorpusRecord(ranking(prompt, "", answers), key=prompt, source=place, group=kind)


@cache
def _simplified() -> Callable[[str], str]:
    """Traditional -> simplified characters, by OpenCC's table t2s."""
    try:
        import opencc
    except ImportError:
        raise UserError(
            "some books of chinese-poetry are in traditional characters, and OpenCC, which makes simplified ones of "
            "them, is not installed: pip install 'espalier-llm[prepare]'"
        ) from None
    return opencc.OpenCC("t2s").convert
