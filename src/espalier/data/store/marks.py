"""What is noted of each record and tree, as small numbers: for splitting, for the preflight, for warnings."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection
from typing import Any

from espalier.data.records import Messages, Record
from espalier.trees.tree import Tree

_SCRIPTS = {
    "zh": re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
    "ja": re.compile("[\u3040-\u30ff]"),
    "ko": re.compile("[\uac00-\ud7af\u1100-\u11ff]"),
    "en": re.compile("[A-Za-zÀ-ɏ]"),
    "ru": re.compile("[Ѐ-ӿ]"),
    "ar": re.compile("[\u0600-\u06ff]"),
}
LANGUAGES = tuple(_SCRIPTS)
"""What `language` can tell apart. It tells scripts: en is all that is written in Latin letters."""
SCRIPTS = ("", *LANGUAGES)
"""What `script_mark` counts through; "" is text without a letter."""
NOT_LOOKED_AT = -1
ENDLESS, EQUAL = 1, 2
"""Marks of a tree: an answer without an end token; equal answers with different judgements."""

_LOOKED_AT, _CHARACTERS = 1024, 400  # a script is plain from few words, and a share from few records


def language(text: str) -> str:
    """The script of most of the text, which tells its language well enough for an account of data.

    "" where there is no letter. Kana make it Japanese. A Han character weighs as much as three letters, about what it takes to write it in Latin ones.

    >>> language("用 PyTorch 训练语言模型"), language("これは日本語です"), language("2 + 3 = 5")
    ('zh', 'ja', '')
    """
    counts = Counter({name: len(script.findall(text)) for name, script in _SCRIPTS.items()})
    if counts["ja"] and 4 * counts["ja"] >= counts["zh"]:
        return "ja"
    counts["zh"] *= 3
    name, count = counts.most_common(1)[0]
    return name if count else ""


def prompt_key(record: Record) -> str:
    """What must not stand on both sides of a split: the text up to the first assistant turn."""
    if record.kind == "text":
        return record.text
    return json.dumps([[turn.role, turn.content] for turn in record.opening], ensure_ascii=False)


def prompt_mark(record: Record) -> int:
    """A hash of 64 bits of what must not stand on both sides of a split, the same in every process.

    Two different prompts of five million share one with a chance of one in a million.
    """
    return _hash(prompt_key(record))


def pair_marks(record: Record) -> tuple[int, int]:
    """Hashes of a pair as it is and the other way round; (0, 0) for what is no pair."""
    if record.kind != "preference":
        return 0, 0
    prompt = _said(record.prompt)
    chosen, rejected = (_said(answer.messages) for answer in record.answers)
    return _hash(f"{prompt}\0{chosen}\0{rejected}"), _hash(f"{prompt}\0{rejected}\0{chosen}")


def looked_at(line: int) -> int:
    """How far apart the lines about `line` are whose script is noted: a power of two; about a thousand lines in all."""
    return 1 << max((line // _LOOKED_AT).bit_length() - 1, 0)


def scattered(line: Any) -> Any:
    """A number of 26 bits for a line, or for each of an array of lines; its divisors follow no pattern of the file's.

    Files often alternate (two languages, say), and every second line would then see one side only.
    """
    return ((line * 2654435761 & 0xFFFFFFFF) >> 7) | 1 << 25


def script_mark(record: Record, line: int) -> int:
    """A place in `SCRIPTS`, or `NOT_LOOKED_AT`: all of the first lines of a file, then ever fewer of them."""
    if scattered(line) % looked_at(line):
        return NOT_LOOKED_AT
    # The first characters of each turn, so that a long question does not hide the answer's language.
    beginning = "\n".join(text[:_CHARACTERS] for text in record.texts[:4])
    return SCRIPTS.index(language(beginning))


def role_order(record: Record) -> str:
    """Who speaks, in the order of their first turns.

    >>> from espalier.data.records import Message
    >>> role_order(Record.chat((Message("user", "a"), Message("assistant", "b")) * 3))
    'user, assistant (several times)'
    """
    if record.kind == "text":
        return "document"
    whole = record.kind in ("chat", "prompt")
    turns = [message.role for message in (record.messages if whole else record.prompt)]
    seen = list(dict.fromkeys(turns))
    answers = "" if whole else " -> answers"
    return ", ".join(seen) + (" (several times)" if len(turns) > len(seen) else "") + answers


def tree_marks(tree: Tree, stop: Collection[int], cutoff_len: int) -> int:
    """`ENDLESS` and `EQUAL` of a tree of answers.

    An answer ends well where its last trained token (or, where none is trained, one of its last four) is in `stop`,
    or where the branch has `cutoff_len` tokens and was cut, which the account says.
    """
    ended, branches = True, 0
    for node, depth in tree.nodes():
        if node.ends:
            branches += len(node.ends)
            learned = node.trained.nonzero()[0]
            last = node.tokens[learned[-1:]] if len(learned) else node.tokens[-4:]
            cut = depth + len(node.tokens) >= cutoff_len
            ended = ended and (cut or any(int(token) in stop for token in last))
    return (0 if ended else ENDLESS) | (EQUAL if branches > 1 and has_equal_answers(tree) else 0)


def has_equal_answers(tree: Tree) -> bool:
    """Whether two branches are the same tokens although one is said to be better."""
    scores = tree.extras.get("scores")
    for node, _ in tree.nodes():
        leaves: dict[bytes, list[int]] = {}
        for child in node.children:
            leaves.setdefault(child.tokens.tobytes(), []).extend(child.ends)
        for branches in (list(node.ends), *leaves.values()):
            if len(branches) > 1 and (scores is None or len({float(scores[b]) for b in branches}) > 1):
                return True
    return False


def _said(messages: Messages) -> str:
    return json.dumps(
        [[m.role, m.content, m.prefix, m.thoughts, m.calls] for m in messages], ensure_ascii=False
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")
