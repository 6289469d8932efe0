"""Weibo comments and LCSTS summaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from espalier.corpora.made import CorpusRecord, Division, Omission
from espalier.corpora.prepare.news import lcsts, weibo

ALL = Division(dev=0)


def one(folder: Path, *rows: Any) -> list[CorpusRecord | Omission]:
    path = folder / "weibo_summary_comments_json.json"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return list(weibo(folder, ALL))


def test_comments_by_likes_then_length(tmp_path: Path) -> None:
    comments = [["短", 3], ["三个字", 3], ["最赞", "1200"], ["没人\n赞", 0], ["", 5], ["坏", "多"], "坏"]
    found = one(tmp_path, {"article": "今天 的 新闻", "abstract": "摘 要 iPhone 15", "comments": comments})
    [made] = [thing for thing in found if isinstance(thing, CorpusRecord)]
    assert made.row["prompt"] == "新闻内容：今天的新闻 摘要：摘要iPhone 15"
    assert made.row["prefix"] == "评论："
    assert [answer["answer"] for answer in made.row["answers"]] == ["最赞", "三个字", "短", "没人赞"]
    assert sorted(thing.cause for thing in found if isinstance(thing, Omission)) == [
        "a comment that is no [text, likes]",
        "a comment whose likes are no number",
        "an empty comment",
    ]


def test_likes_are_no_scores(tmp_path: Path) -> None:
    """Raw likes as scores made one post's comments weigh a thousand times another's; only their order means anything."""
    few, many = (
        {"article": f"新闻{k}", "abstract": "摘要", "comments": [["甲", 2 * k], ["乙", k], ["丙", k]]}
        for k in (1, 1000)
    )
    rows = [thing.row for thing in one(tmp_path, few, many) if isinstance(thing, CorpusRecord)]
    assert [[answer["score"] for answer in row["answers"]] for row in rows] == [[1, 0, 0], [1, 0, 0]]
    assert [[answer["likes"] for answer in row["answers"]] for row in rows] == [[2, 1, 1], [2000, 1000, 1000]]


def test_what_has_no_comment_or_text_is_said(tmp_path: Path) -> None:
    found = one(
        tmp_path,
        {"article": "甲", "abstract": "乙", "comments": []},
        {"article": "", "abstract": "乙", "comments": [["好", 1]]},
        {"article": "甲", "comments": [["好", 1]]},
    )
    assert [thing.cause for thing in found if isinstance(thing, Omission)] == [
        "no comment",
        "no article",
        "no column 'abstract'",
    ]


def test_lcsts_parallel_files(shared: Path) -> None:
    folder = shared / "data/lcsts"
    posts, summaries = (
        [line.strip() for line in (folder / f"test.{name}.txt").read_bytes().decode().split("\r\n") if line]
        for name in ("src", "tgt")
    )
    rows = [thing.row for thing in lcsts(folder, ALL) if isinstance(thing, CorpusRecord)]
    assert len(rows) == 3000
    for row, post, summary in zip(rows, posts, summaries, strict=True):
        assert row == {
            "prompt": f"新闻内容：{post}",
            "prefix": "摘要：",
            "answers": [{"answer": summary, "score": 1}],
        }


def test_lcsts_original_blocks(tmp_path: Path) -> None:
    (tmp_path / "PART_II.txt").write_text(
        "<doc id=0>\n    <human_label>4</human_label>\n    <summary>\n        摘要一\n    </summary>\n"
        "    <short_text>\n        新闻一\n    </short_text>\n</doc>\n"
        "<doc id=1>\n<summary>\n</summary>\n<short_text>\n新闻二\n</short_text>\n</doc>\n",
        encoding="utf-8",
    )
    made, without = lcsts(tmp_path, ALL)
    assert isinstance(made, CorpusRecord) and isinstance(without, Omission)
    assert made.row["prompt"] == "新闻内容：新闻一"
    assert made.row["answers"] == [{"answer": "摘要一", "score": 1, "human_label": 4}]
    assert (without.cause, without.source.rsplit(":", 1)[1]) == ("no summary", "10")
