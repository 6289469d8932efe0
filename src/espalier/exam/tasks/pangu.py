"""The prompt set `pangu`: sentences that contain the candidate, scored on the text around it.

AFQMC, TNEWS, IFLYTEK and CSL have the templates and scored spans of the PanGu-alpha side's own evaluation code. The
others have the templates of the first RLHF project that scored PanGu-alpha on CLUE, with a span of our choosing,
because theirs was wrong: what follows the candidate is scored, given the candidate (OCNLI, CMNLI, C3, and BUSTM,
EPRSTMT, CSLDCP by analogy), or the candidate and what follows it (ChID, as PanGu-alpha scores CMRC2019; CLUEWSC,
where the noun stands in the pronoun's place or does not). Scores are means over the scored tokens: perplexities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from espalier.exam.task import Candidate
from espalier.exam.tasks.items import Item
from espalier.exam.tasks.plain import words as plain_words

VERSION = 1

Fields = dict[str, Any]

_WORDS: dict[str, tuple[str, ...]] = {
    "ocnli": ("Yes", "Maybe", "No"),
    "cmnli": ("Yes", "Maybe", "No"),
    "afqmc": ("不同", "相同"),
    "bustm": ("不同", "相同"),
    "csl": ("不是", "是"),
    "eprstmt": ("差评", "好评"),
    "cluewsc2020": ("false", "true"),
}

SHOT_CHARACTERS = {"tnews": ("sentence", 150), "iflytek": ("sentence", 25)}
"""How long a field may be in a solved example, in characters, as the PanGu-alpha side cuts them."""


def _after(opening: str, rest: str) -> Callable[[str], tuple[str, int]]:
    """The candidate and what belongs to it, then the scored rest."""
    return lambda word: (word + opening + rest, len(word) + len(opening))


def _spans(task: str, f: Fields) -> tuple[str, Callable[[str], tuple[str, int]]]:
    """The text before a candidate, and for each candidate its text and where the scored part begins."""
    if task in ("ocnli", "cmnli"):
        return f"{f['sentence1']}?", _after("，", f["sentence2"])
    if task in ("afqmc", "bustm"):
        return "下面两个句子语义", _after("：", f"“{f['sentence1']}”；“{f['sentence2']}”")
    if task == "tnews":
        return "这是关于", _after("的文章：", f["sentence"])
    if task == "iflytek":
        return "这是关于", _after("的应用程序：", f["sentence"])
    if task == "csldcp":
        return "这是关于", _after("的论文：", f["content"])
    if task == "eprstmt":
        return "这是一条", _after("：", f["sentence"])
    if task == "csl":  # every token is scored, so the whole text is the candidate
        text = f"摘要：{f['abst']},关键词：{','.join(f['keyword'])}"
        return "", lambda word: (f"{text}{word}真实关键词", 0)
    if task == "c3":
        kind = "对话" if f["dialogue"] else "文章"
        return f"问: {f['question']}\n答:", _after(f"\n该答案来自{kind}: ", "".join(f["sentences"]))
    if task == "chid":  # the passage's other blanks are left out
        return "".join(f["before"]), lambda word: (word + "".join(f["after"]), 0)
    assert task == "cluewsc2020"
    spans = {"false": f["pronoun"], "true": f["noun"]}
    return f["before"], lambda word: (spans[word] + f["after"], 0)


def words(task: str, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The words that answer, in the order of the labels in the files."""
    return _WORDS.get(task) or plain_words(task, labels)


def ask(task: str, item: Item, labels: tuple[str, ...]) -> tuple[str, tuple[Candidate, ...]]:
    """The prompt and its candidates, each with the character where the scored tokens begin."""
    prompt, span = _spans(task, item.fields)
    named = item.choices or words(task, labels)
    return prompt, tuple(Candidate(*span(word), "" if item.choices else word) for word in named)


def shortened(task: str, item: Item) -> Item:
    """The item as it stands in a solved example."""
    if task not in SHOT_CHARACTERS:
        return item
    field, longest = SHOT_CHARACTERS[task]
    fields = {**item.fields, field: item.fields[field][:longest]}
    return Item(item.id, fields, item.gold, item.source, item.choices)
