"""Files, encoders and comparisons that the tests of stores share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espalier.data.encode.templates import choose_template
from espalier.data.encode.tokenise import Encoder
from espalier.data.store.job import Job
from espalier.models.load import train_tokenizer
from espalier.trees.tree import Tree

Row = dict[str, Any]

CHATS: list[Row] = [
    {"instruction": f"第{i}个问题是什么？" * (i % 5 + 1), "output": f"这是第{i}个回答。" * (i % 7 + 1)}
    for i in range(60)
]
PAIRS: list[Row] = [
    {"prompt": f"第{i}个问题？", "chosen": f"好的回答{i}。" * (i % 3 + 1), "rejected": f"坏的回答{i}。"}
    for i in range(30)
]
RANKS: list[Row] = [
    {"prompt": f"问{i}", "answers": [{"answer": f"答{i}{k}", "score": 3 - k} for k in range(3)]}
    for i in range(20)
]
TEXTS: list[Row] = [{"text": f"春眠不觉晓，处处闻啼鸟。{i}" * (i % 30 + 1)} for i in range(40)]
LABELLED: list[Row] = [{"prompt": f"问{i}", "completion": f"答{i}", "label": i % 2 == 0} for i in range(20)]
ROWS: dict[str, list[Row]] = {
    "chat": CHATS,
    "preference": [*PAIRS, *RANKS],
    "ranking": RANKS,
    "text": TEXTS,
    "unpaired": LABELLED,
    "prompt": [{"prompt": f"第{i}个问题？", "reference": str(i)} for i in range(25)],
}


def tokenizer_of(size: int = 400) -> Any:
    return train_tokenizer([str(list(row.values())) for rows in ROWS.values() for row in rows], size)


def encoder(tokenizer: Any, cutoff_len: int = 64, **options: Any) -> Encoder:
    template = choose_template(tokenizer, options.pop("template", "auto"))
    return Encoder(tokenizer, template, cutoff_len, options.pop("overlong", "trim"), **options)


def job(kind: str, tokenizer: Any, **options: Any) -> Job:
    made = encoder(tokenizer, **options)
    return Job(kind, made, max_prompt_length=made.cutoff_len // 2, stop=made.stop)


def write(path: Path, rows: Sequence[Row | str]) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return str(path)


def said(tree: Tree) -> Any:
    """Everything that a tree is, to be compared."""
    return (
        tree.tokens.dtype.str,
        tree.tokens.tolist(),
        tree.trained.tolist(),
        tree.ends,
        [said(child) for child in tree.children],
        tree.source,
        {name: value.tolist() for name, value in tree.extras.items()},
    )
