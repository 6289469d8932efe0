"""News of Weibo: comments ranked by likes, and summaries (LCSTS)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espalier.corpora.made import CorpusRecord, Division, Omission, Outcomes, one_line, ranking
from espalier.corpora.prepare.reading import lacking, rows_of, text_of
from espalier.data.read.lines import read_lines
from espalier.errors import UserError

_HAN = r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\u3000-\u303f]"
_SPACE_BESIDE_HAN = re.compile(rf"(?<={_HAN})\s+|\s+(?={_HAN})")
_TAG = re.compile(r"<(/?)(doc|human_label|summary|short_text)\b[^>]*>")


def weibo(where: Path, division: Division) -> Outcomes:
    """JSON lines with article, abstract, comments [[text, likes], …].

    Comments stand by likes, then by length, most first. `score` is a comment's rank by likes (0 the least liked,
    equal likes equal), because likes of different posts have nothing in common; the likes themselves are kept
    beside it.
    """
    for entry in rows_of(where):
        if isinstance(entry, Omission):
            yield entry
            continue
        place, row = entry
        article, abstract = (_close(one_line(text_of(row, name))) for name in ("article", "abstract"))
        problem = lacking(place, row, "article", "abstract", "comments")
        if problem:
            yield problem
        elif not article or not abstract:
            yield Omission(place, "no article" if not article else "no abstract", article or abstract)
        else:
            comments = []
            for comment in _comments(row["comments"], place):
                if isinstance(comment, Omission):
                    yield comment
                else:
                    comments.append(comment)
            if comments:
                prompt = f"新闻内容：{article} 摘要：{abstract}"
                yield CorpusRecord(_ranked(prompt, comments), key=prompt, source=place)
            else:
                yield Omission(place, "no comment", article)


def _comments(value: Any, place: str) -> Iterator[tuple[str, int] | Omission]:
    for comment in value if isinstance(value, list) else []:
        if not isinstance(comment, list) or len(comment) != 2:
            yield Omission(place, "a comment that is no [text, likes]", str(comment))
            continue
        text = one_line(comment[0])
        try:
            likes = int(comment[1])
        except (TypeError, ValueError):
            yield Omission(place, "a comment whose likes are no number", text)
            continue
        if text.strip():
            yield text, likes
        else:
            yield Omission(place, "an empty comment")


def _ranked(prompt: str, comments: list[tuple[str, int]]) -> dict[str, Any]:
    comments = sorted(comments, key=lambda comment: (-comment[1], -len(comment[0])))
    ranks = {likes: rank for rank, likes in enumerate(sorted({likes for _, likes in comments}))}
    row = ranking(prompt, "评论：", [(text, ranks[likes]) for text, likes in comments])
    for answer, (_, likes) in zip(row["answers"], comments, strict=True):
        answer["likes"] = likes
    return row


def _close(text: str) -> str:
    """Without the spaces that only part Chinese words; those between Latin words stay.

    >>> _close("今天 的 iPhone 15 发布会 ")
    '今天的iPhone 15发布会'
    """
    return _SPACE_BESIDE_HAN.sub("", text).strip()


def lcsts(where: Path, division: Division) -> Outcomes:
    """LCSTS: the post is the prompt, its summary scores 1.

    Either parallel files `X.src.txt` and `X.tgt.txt`, or the original `PART_*.txt` with `<doc>` blocks, whose human
    label (1 to 5: how well the summary fits), where there is one, is kept beside the answer.
    """
    if where.is_dir():
        files = sorted(path for path in where.rglob("*.txt") if not path.name.endswith(".tgt.txt"))
    else:
        files = [where] if where.is_file() else []
    if not files:
        raise UserError(
            f"{where}: no LCSTS; wanted X.src.txt with X.tgt.txt, or PART_I.txt, or a folder of them"
        )
    for path in files:
        blocks = _parallel(path) if path.name.endswith(".src.txt") else _blocks(path)
        for place, post, summary, label in blocks:
            if not post or not summary:
                yield Omission(place, "no post" if not post else "no summary", post or summary)
                continue
            row = ranking(f"新闻内容：{post}", "摘要：", [(summary, 1)])
            if label:
                row["answers"][0]["human_label"] = int(label)
            yield CorpusRecord(row, key=post, source=place, group=path.name)


def _parallel(path: Path) -> Iterator[tuple[str, str, str, str]]:
    other = path.with_name(path.name.removesuffix(".src.txt") + ".tgt.txt")
    if not other.is_file():
        raise UserError(f"{other}: no such file; the summaries of {path.name} belong there")
    summaries = read_lines(other)
    for place, post in read_lines(path):
        summary = next(summaries, None)
        if summary is None:
            raise UserError(f"{place}: {other.name} ends before this line; fetch both files anew")
        yield place, post.strip(), summary[1].strip(), ""
    extra = next(summaries, None)
    if extra is not None:
        raise UserError(f"{extra[0]}: {path.name} ends before this line; fetch both files anew")


def _blocks(path: Path) -> Iterator[tuple[str, str, str, str]]:
    texts: dict[str, str] = {}
    inside, start = "", f"{path}:1"
    for place, line in read_lines(path):
        at = 0
        for tag in _TAG.finditer(line):
            texts[inside] = texts.get(inside, "") + line[at : tag.start()].strip()
            at = tag.end()
            closes, name = tag.group(1), tag.group(2)
            if name != "doc":
                inside = "" if closes else name
            elif closes:
                label = texts.get("human_label", "")
                yield (
                    start,
                    texts.get("short_text", ""),
                    texts.get("summary", ""),
                    label if label.isdigit() else "",
                )
            else:
                texts, inside, start = {}, "", place
        texts[inside] = texts.get(inside, "") + line[at:].strip()
