"""The prompt set `plain`: a clear question with the label words as answers; only the answer is scored.

Each function turns an item's fields into the text before the answer.
"""

from __future__ import annotations

from typing import Any

from espalier.exam.task import Candidate
from espalier.exam.tasks.items import Item, classes

VERSION = 1

Fields = dict[str, Any]

_WORDS: dict[str, tuple[str, ...]] = {
    "ocnli": ("蕴含", "中立", "矛盾"),
    "cmnli": ("蕴含", "中立", "矛盾"),
    "afqmc": ("不同", "相同"),
    "bustm": ("不同", "相同"),
    "csl": ("否", "是"),
    "cluewsc2020": ("否", "是"),
    "eprstmt": ("差评", "好评"),
}


def _inference(f: Fields) -> str:
    return f"前提：{f['sentence1']}\n假设：{f['sentence2']}\n前提与假设的关系（蕴含、中立、矛盾）："


def _same(f: Fields) -> str:
    return f"句子一：{f['sentence1']}\n句子二：{f['sentence2']}\n两句话的意思相同还是不同？答："


def _csl(f: Fields) -> str:
    return f"摘要：{f['abst']}\n关键词：{'、'.join(f['keyword'])}\n这些都是这篇摘要的关键词吗？（是、否）答："


def _wsc(f: Fields) -> str:
    text = f"{f['before']}_{f['pronoun']}_{f['after']}"
    return f"{text}\n文中的“_{f['pronoun']}_”指的是“{f['noun']}”吗？（是、否）答："


def _eprstmt(f: Fields) -> str:
    return f"评论：{f['sentence']}\n这条评论是好评还是差评？答："


def _tnews(f: Fields) -> str:
    return f"新闻标题：{f['sentence']}\n新闻类别："


def _iflytek(f: Fields) -> str:
    return f"应用描述：{f['sentence']}\n应用类别："


def _csldcp(f: Fields) -> str:
    return f"论文摘要：{f['content']}\n所属学科："


def _c3(f: Fields) -> str:
    kind = "对话" if f["dialogue"] else "文章"
    text = "\n".join(f["sentences"])
    return f"{kind}：{text}\n问题：{f['question']}\n答案："


def _chid(f: Fields) -> str:
    passage = "……".join(f["before"]) + "____" + "……".join(f["after"])
    return f"短文：{passage}\n横线处应填的成语："


_PROMPTS = {
    "ocnli": _inference,
    "cmnli": _inference,
    "afqmc": _same,
    "bustm": _same,
    "csl": _csl,
    "cluewsc2020": _wsc,
    "eprstmt": _eprstmt,
    "tnews": _tnews,
    "iflytek": _iflytek,
    "csldcp": _csldcp,
    "c3": _c3,
    "chid": _chid,
}

NORMALISE = {"c3": "mean"}
"""Answers of very different length are compared by the mean of their tokens; label words by the sum, which is the
logprob of the answer itself."""


def words(task: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The words that answer, in the order of the labels in the files."""
    if task in ("tnews", "iflytek"):
        return tuple(name for _, name in classes(task))
    return _WORDS.get(task, labels)


def ask(task: str, item: Item, labels: tuple[str, ...]) -> tuple[str, tuple[Candidate, ...]]:
    """The prompt and its candidates; all tokens of a candidate are scored."""
    named = item.choices or words(task, labels)
    given = "" if item.choices else None
    return _PROMPTS[task](item.fields), tuple(Candidate(w, 0, w if given is None else given) for w in named)
