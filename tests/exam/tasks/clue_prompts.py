"""The CLUE tasks' prompts, written once more from their description, straight from the files' rows.

Each function: a row -> (gold index, plain (prompt, candidates), pangu (prompt, candidates)), where a candidate is
(text, first scored character).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Candidates = list[tuple[str, int]]
Known = tuple[int | None, tuple[str, Candidates], tuple[str, Candidates]]

RELATIONS = ["entailment", "neutral", "contradiction"]
TNEWS = dict(zip(
    ["100", "101", "102", "103", "104", "106", "107", "108", "109", "110", "112", "113", "114", "115", "116"],
    ["故事", "文化", "娱乐", "体育", "财经", "房产", "汽车", "教育", "科技", "军事", "旅游", "世界", "股票", "农业", "游戏"], strict=True,
))  # fmt: skip


def whole(words: list[str]) -> Candidates:
    return [(word, 0) for word in words]


def after(heads: list[str], rest: str) -> Candidates:
    return [(head + rest, len(head)) for head in heads]


def nli(row: dict[str, Any]) -> Known:
    first, second = row["sentence1"], row["sentence2"]
    plain = f"前提：{first}\n假设：{second}\n前提与假设的关系（蕴含、中立、矛盾）："
    pangu = after(["Yes，", "Maybe，", "No，"], second)
    return RELATIONS.index(row["label"]), (plain, whole(["蕴含", "中立", "矛盾"])), (first + "?", pangu)


def same(row: dict[str, Any]) -> Known:
    first, second = row["sentence1"], row["sentence2"]
    plain = "句子一：" + first + "\n句子二：" + second + "\n两句话的意思相同还是不同？答："
    pangu = after(["不同：", "相同："], f"“{first}”；“{second}”")
    return int(row["label"]), (plain, whole(["不同", "相同"])), ("下面两个句子语义", pangu)


def csl(row: dict[str, Any]) -> Known:
    plain = (
        "摘要："
        + row["abst"]
        + "\n关键词："
        + "、".join(row["keyword"])
        + "\n这些都是这篇摘要的关键词吗？（是、否）答："
    )
    text = "摘要：" + row["abst"] + ",关键词：" + ",".join(row["keyword"])
    return (
        int(row["label"]),
        (plain, whole(["否", "是"])),
        ("", whole([text + w + "真实关键词" for w in ("不是", "是")])),
    )


def wsc(row: dict[str, Any]) -> Known:
    target, text = row["target"], row["text"]
    start = target["span2_index"]
    head, pronoun, tail = text[:start], target["span2_text"], text[start + len(target["span2_text"]) :]
    plain = f"{head}_{pronoun}_{tail}\n文中的“_{pronoun}_”指的是“{target['span1_text']}”吗？（是、否）答："
    pangu = [(pronoun + tail, 0), (target["span1_text"] + tail, 0)]
    return int(row["label"] == "true"), (plain, whole(["否", "是"])), (head, pangu)


def sentiment(row: dict[str, Any]) -> Known:
    plain = "评论：" + row["sentence"] + "\n这条评论是好评还是差评？答："
    pangu = after(["差评：", "好评："], row["sentence"])
    return int(row["label"] == "Positive"), (plain, whole(["差评", "好评"])), ("这是一条", pangu)


def topics(names: list[str], gold: int, plain: str, kind: str, text: str) -> Known:
    pangu = after([f"{name}的{kind}：" for name in names], text)
    return gold, (plain, whole(names)), ("这是关于", pangu)


def tnews(row: dict[str, Any]) -> Known:
    gold = list(TNEWS).index(str(row["label"]))
    plain = f"新闻标题：{row['sentence']}\n新闻类别："
    return topics(list(TNEWS.values()), gold, plain, "文章", row["sentence"])


def choices_c3(sentences: list[str], asked: dict[str, Any], kind: str) -> Known:
    options = list(dict.fromkeys(asked["choice"]))
    plain = kind + "：" + "\n".join(sentences) + "\n问题：" + asked["question"] + "\n答案："
    pangu = after([f"{option}\n该答案来自{kind}: " for option in options], "".join(sentences))
    return options.index(asked["answer"]), (plain, whole(options)), (f"问: {asked['question']}\n答:", pangu)


def blank(passage: str, mark: str, idioms: list[str], gold: int) -> Known:
    head, tail = passage.split(mark)
    other = re.compile("#idiom[0-9]*#")
    plain = f"短文：{other.sub('……', head)}____{other.sub('……', tail)}\n横线处应填的成语："
    pangu = whole([idiom + other.sub("", tail) for idiom in idioms])
    return gold, (plain, whole(idioms)), (other.sub("", head), pangu)


def known(folder: Path, name: str, split: str) -> Iterator[Known]:
    """Every question of a task's dev or train file."""
    if name == "c3":
        for letter, kind in (("d", "对话"), ("m", "文章")):
            for sentences, asked, _ in json.loads((folder / f"{letter}-{split}.json").read_text("utf-8")):
                for one in asked:
                    yield choices_c3(sentences, one, kind)
        return
    names = [f"{split}.json", f"{split}_few_all.json", f"{split}_0.json", f"{split}.3k.json"]
    path = next(folder / file for file in names if (folder / file).is_file())
    if split == "dev" and not (folder / "dev.json").is_file() and (folder / "test_public.json").is_file():
        path = folder / "test_public.json"
    rows = [json.loads(line) for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    if name == "chid":
        answers = {}
        if (folder / f"{split}_answer.json").is_file():
            answers = json.loads((folder / f"{split}_answer.json").read_text("utf-8"))
        for row in rows:
            for passage in [row["content"]] if isinstance(row["content"], str) else row["content"]:
                for mark in re.findall("#idiom[0-9]*#", passage):
                    gold = answers[mark] if answers else row["answer"]
                    yield blank(passage, mark, row["candidates"], gold)
        return
    if name == "iflytek":
        table = {}
        for file in sorted(folder.glob("*.json")):
            for line in file.read_text("utf-8").strip().split("\n"):
                row = json.loads(line)
                table[int(row["label"])] = row["label_des"]
        words = [table[i] for i in range(119)]
        for row in rows:
            plain = f"应用描述：{row['sentence']}\n应用类别："
            yield topics(words, int(row["label"]), plain, "应用程序", row["sentence"])
        return
    if name == "csldcp":
        words = sorted(
            {row["label"] for file in folder.glob("*.json") for row in map(json.loads, file.open())}
        )
        for row in rows:
            plain = f"论文摘要：{row['content']}\n所属学科："
            yield topics(words, words.index(row["label"]), plain, "论文", row["content"])
        return
    kinds = {"ocnli": nli, "cmnli": nli, "afqmc": same, "bustm": same, "csl": csl, "cluewsc2020": wsc,
             "eprstmt": sentiment, "tnews": tnews}  # fmt: skip
    for row in rows:
        if row["label"] != "-":
            yield kinds[name](row)
