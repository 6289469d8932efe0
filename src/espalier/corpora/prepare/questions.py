"""Questions of the web with their answers: Zhidao (several replies, the best marked) and Baike (one answer).

Line breaks are taken out of all texts, as in the corpora that the predecessors trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from espalier.corpora.made import CorpusRecord, Division, Omission, Outcomes, one_line, ranking
from espalier.corpora.prepare.reading import lacking, rows_of, text_of
from espalier.corpora.prepare.shelf import Shelf


def zhidao(where: Path, division: Division) -> Outcomes:
    """csv files with title, question, reply, is_best: all replies of one title, in the order of the titles.

    A reply scores its `is_best`. `question` says more about the title; replies to one title whose questions differ
    answer different things and make a record each.
    """
    with Shelf() as shelf:
        for entry in rows_of(where):
            if isinstance(entry, Omission):
                yield entry
                continue
            place, row = entry
            problem = lacking(place, row, "title", "reply", "is_best")
            title, reply = one_line(row.get("title")), one_line(row.get("reply"))
            content = one_line(row.get("question"))
            if content.strip() == title.strip():
                content = ""
            score = _best(row.get("is_best"))
            if problem:
                yield problem
            elif not title.strip():
                yield Omission(place, "no title", reply)
            elif not reply.strip():
                yield Omission(place, "no reply", title)
            elif score is None:
                yield Omission(place, "is_best is neither 0 nor 1", str(row.get("is_best")))
            else:
                note = json.dumps([place, content if content.strip() else "", score], ensure_ascii=False)
                shelf.add(("",), title, reply, note)
        shelf.arrange()
        for title, items in groupby(shelf.by_key(), key=lambda item: item[1]):
            yield from _replies(title, [(text, *json.loads(note)) for _, _, text, note in items])


def _replies(title: str, items: list[tuple[str, str, str, int]]) -> Iterator[CorpusRecord]:
    """`items`: (reply, place, content, score) of one title."""
    contents = list(dict.fromkeys(content for _, _, content, _ in items if content))
    for content in contents if len(contents) > 1 else [""]:
        own = [item for item in items if len(contents) < 2 or item[2] == content]
        shown = content or (contents[0] if contents else "")
        yield _question(title, shown, own)
    rest = [item for item in items if len(contents) > 1 and not item[2]]
    if rest:
        yield _question(title, "", rest)


def _question(title: str, content: str, items: list[tuple[str, str, str, int]]) -> CorpusRecord:
    prompt = f"问题：{title} 内容：{content}" if content else f"问题：{title}"
    row = ranking(prompt, "答：", [(reply, score) for reply, _, _, score in items])
    source = items[0][1]
    return CorpusRecord(row, key=title, source=source, group=Path(source.rsplit(":", 1)[0]).name)


def _best(value: object) -> int | None:
    text = str(value).strip().lower().removesuffix(".0")
    return {"0": 0, "1": 1, "false": 0, "true": 1}.get(text)


def baike(where: Path, division: Division) -> Outcomes:
    """JSON lines with title, desc, answer: the longer of title and desc is the prompt, its answer scores 1."""
    for entry in rows_of(where):
        if isinstance(entry, Omission):
            yield entry
            continue
        place, row = entry
        title, description = one_line(text_of(row, "title")), one_line(text_of(row, "desc"))
        answer = one_line(text_of(row, "answer"))
        prompt = description if len(description) > len(title) else title
        problem = lacking(place, row, "title", "answer")
        if problem:
            yield problem
        elif not prompt.strip():
            yield Omission(place, "no question", answer)
        elif not answer.strip():
            yield Omission(place, "no answer", prompt)
        else:
            row = ranking(prompt, "答：", [(answer, 1)])
            yield CorpusRecord(row, key=prompt, source=place, group=Path(place.rsplit(":", 1)[0]).name)
