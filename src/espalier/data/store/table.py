"""Records -> the columns of a block: their tokens, and what is noted of each record and tree as small numbers."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from espalier.data.encode.prompts import encode_prompt_ids
from espalier.data.encode.tokenise import Encoder, encode_paths
from espalier.data.read.account import Account
from espalier.data.records import Messages, Record
from espalier.data.store.job import BlockResult, Job
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

    "" where there is no letter. Kana make it Japanese. A Han character counts as three letters, for it takes about three
    Latin ones to write it.

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
    said = [[m.role, m.content, m.prefix, m.thoughts, m.calls] for m in messages]
    return json.dumps(said, ensure_ascii=False)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


class _RecordAccount(Account):
    """An account that also knows what was said of the present record."""

    def __init__(self) -> None:
        super().__init__()
        self.now: list[str] = []

    def add(self, cause: str, place: str, reason: str = "") -> None:
        self.now.append(cause)

    def taken(self) -> tuple[str, ...]:
        causes, self.now = tuple(self.now), []
        return causes


class _Names:
    """Values -> small numbers, in the order of their first coming."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def __getitem__(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))


class Table:
    """Collects the columns of a block; lists, because one conversion at the end is cheaper than one a record."""

    def __init__(self, job: Job, result: BlockResult) -> None:
        self._job, self._result = job, result
        self._lists: dict[str, Any] = {
            name: array("i")
            if name == "tokens"
            else []  # a long text has more tokens than a list should hold
            for name in (
                *job.record_columns,
                *job.tree_columns,
                *job.parts,
                *(f"{p}.size" for p in job.parts),
            )
        }
        self._flags = bytearray()
        self._names = {"file": _Names(), "role": _Names(), "causes": _Names()}
        self._trees_of: list[int] = []

    def fill(self, records: Sequence[Record]) -> None:
        if self._job.encoder is None:
            for record in records:
                self._record(record, record.notes)
                self._lists["characters"].append(sum(map(len, record.texts)))
                self._trees_of.append(0)
        elif self._job.kind == "prompt":
            self._prompts(records, self._job.encoder)
        else:
            self._trained(records, self._job.encoder)
        self._result.columns = {
            name: np.array(
                values, (self._job.record_columns | self._job.tree_columns | self._job.parts).get(name, "<i8")
            )
            for name, values in self._lists.items()
        }
        if self._flags:
            tokens = self._result.columns["tokens"]
            flags = np.frombuffer(self._flags, np.bool_)
            tokens[flags] = -1 - tokens[flags]
        self._result.trees_of = np.array(self._trees_of, np.int64)
        self._result.names = {name: list(names.numbers) for name, names in self._names.items()}

    def _record(self, record: Record, causes: tuple[str, ...]) -> None:
        lists, names = self._lists, self._names
        path, _, line = record.source.rpartition(":")
        number = int(line)
        lists["file"].append(names["file"][path])
        lists["line"].append(number)
        lists["prompt"].append(prompt_mark(record))
        lists["role"].append(names["role"][role_order(record)])
        lists["script"].append(script_mark(record, number))
        lists["causes"].append(names["causes"][causes])
        if "pair" in lists:
            pair, swapped = pair_marks(record)
            lists["pair"].append(pair)
            lists["swapped"].append(swapped)
            lists["answers"].append(len(record.answers))

    def _trained(self, records: Sequence[Record], encoder: Encoder) -> None:
        noted = _RecordAccount()
        before: Record | None = None
        for record, paths, extras in encode_paths(records, encoder, noted):
            if record is not before:
                self._record(record, noted.taken())
                self._trees_of.append(0)
                before = record
            if not paths:
                continue
            self._trees_of[-1] += 1
            if len(paths) == 1:
                self._path(*paths[0])
            else:
                self._tree(Tree.join(paths, source=record.source, extras=extras))
            if "extras" in self._lists:
                assert len(extras) < 2, extras.keys()
                values = [float(number) for extra in extras.values() for number in extra.flatten()]
                self._result.extras = next(iter(extras), self._result.extras)
                self._part("extras", values)
                if len(paths) == 1 and "shape" in self._lists:
                    self._part("shape", [])

    def _path(self, ids: list[int], flags: list[bool]) -> None:
        """A tree of one branch; as `Tree.from_path` makes it, without making it."""
        assert len(ids) == len(flags) > 0 and not flags[0], "a token without a parent is never trained"
        lists = self._lists
        self._part("tokens", ids)
        self._flags.extend(flags)
        lists["path_tokens"].append(len(ids))
        lists["longest"].append(len(ids))
        lists["trained"].append(sum(flags))
        lists["branches"].append(1)
        lists["marks"].append(0 if self._ends(ids, flags) else ENDLESS)

    def _ends(self, ids: list[int], flags: list[bool]) -> bool:
        """Whether the last trained token ends an answer, or the branch was cut, or there is no answer in it."""
        job = self._job
        assert job.encoder is not None
        if job.kind in ("text", "prompt") or len(ids) >= job.encoder.cutoff_len:
            return True
        return ids[len(flags) - 1 - flags[::-1].index(True)] in job.stop

    def _tree(self, tree: Tree) -> None:
        lists = self._lists
        shape: list[int] = []
        tokens: list[int] = []
        for node, _ in tree.nodes():
            shape += [len(node.tokens), len(node.children), len(node.ends), *node.ends]
            tokens += node.tokens.tolist()
            self._flags.extend(node.trained.tolist())
        self._part("tokens", tokens)
        self._part("shape", shape)
        lists["path_tokens"].append(tree.n_path_tokens)
        lists["longest"].append(tree.longest_path)
        lists["trained"].append(tree.n_trained)
        lists["branches"].append(tree.n_branches)
        assert self._job.encoder is not None
        lists["marks"].append(tree_marks(tree, self._job.stop, self._job.encoder.cutoff_len))

    def _part(self, name: str, values: Sequence[Any]) -> None:
        self._lists[name].extend(values)
        self._lists[f"{name}.size"].append(len(values))

    def _prompts(self, records: Sequence[Record], encoder: Encoder) -> None:
        assert self._job.max_prompt_length is not None
        noted = _RecordAccount()
        for record, ids in encode_prompt_ids(records, encoder, self._job.max_prompt_length, noted):
            self._record(record, noted.taken())
            self._trees_of.append(int(ids is not None))
            if ids is not None:
                self._path(ids, [False] * len(ids))
                turns = [message.as_turn() for message in record.messages]
                seen = [record.messages[-1].content, record.reference, turns, record.columns, record.prefix]
                note = json.dumps(seen, ensure_ascii=False)
                self._part("note", note.encode())
