"""Records -> trees: each answer encoded whole with its prompt, one branch each, and the account of what did not fit.

Preference trees hold the chosen answer in branch 0 and the rejected in branch 1; ranking trees one branch an answer,
best first, with `extras["scores"]` (B,); an unpaired answer has `extras["desirable"]` (1,), 1 or 0. Trees are packed
into rows elsewhere; here a branch is at most `cutoff_len` tokens long.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch

from espalier.data.encode.blanks import BlankFilling, blanked
from espalier.data.encode.encoding import (
    Path,
    Piece,
    adds_bos,
    encode_pieces,
    encode_texts,
    endless,
    in_stretches,
    is_endless,
    is_long,
)
from espalier.data.encode.said import located, not_in
from espalier.data.encode.scored import ScoreAt, until_score
from espalier.data.encode.templates import Template
from espalier.data.encode.too_long import TooLong
from espalier.data.read.account import Account
from espalier.data.records import ASSISTANT, SYSTEM, USER, Record
from espalier.errors import UserError
from espalier.trees.tree import BLANK, Tree

OVERLONG = ("error", "drop", "trim")

NO_TOKEN = "dropped: document without a token"
BATCH = 256  # texts handed to the tokenizer at once: enough for its threads, little enough to hold


@dataclass(frozen=True)
class Encoder:
    """How records become trees.

    `cutoff_len` is the most tokens of a branch. `overlong` says what happens to a longer one: "error" counts them
    and names the first and the longest, "drop" leaves the record out, "trim" shortens it: a chat loses its oldest exchanges, then the beginning of
    its prompt down to a quarter of `cutoff_len`, then the end of its answer; all other records lose the beginning of
    their prompt, the same in every branch, and are left out when that is not enough. A document is never overlong,
    it is cut into pieces. `answers_trained` False marks no token of a preference or ranking trained (a reward model
    reads its leaves), so that equal beginnings of answers are shared too; with `score_at` their branches end where a
    score is read (`scored`). Of chats, `mask_history` trains the last answer only, `train_on_prompt` everything up to the
    end of the last trained answer. With `blanks` documents are texts with blanks, as GLM is pretrained (`blanks`).
    """

    tokenizer: Any
    template: Template
    cutoff_len: int
    overlong: str = "error"
    answers_trained: bool = True
    mask_history: bool = False
    train_on_prompt: bool = False
    score_at: ScoreAt | None = None
    blanks: BlankFilling | None = None

    @cached_property
    def bos(self) -> bool:
        return adds_bos(self.tokenizer)

    @cached_property
    def stop(self) -> tuple[int, ...]:
        """Ids that end an answer: the tokenizer's end token and the last token of the template's turn end."""
        end = self.tokenizer.encode(self.template.end_of_turn, add_special_tokens=False)[-1:]
        known = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        return tuple(sorted({*end, *known}))


def encode_all(records: Sequence[Record], encoder: Encoder) -> tuple[list[Tree], Account]:
    """Trees of all records but prompts in order, and how many records were left out or trimmed, by cause.

    A document gives as many trees as it fills; any other record one tree or none. Raises `UserError` with the record's
    place for one that is too long under `overlong: error`, and where a template or tokenizer cannot serve.
    """
    assert encoder.overlong in OVERLONG, encoder.overlong
    account = Account()
    trees = [
        Tree.join(paths, source=record.source, extras=extras)
        for record, paths, extras in encode_paths(records, encoder, account)
        if paths
    ]
    return trees, account


def encode(record: Record, encoder: Encoder) -> list[Tree]:
    """The trees of a single record (see `encode_all`)."""
    return encode_all([record], encoder)[0]


def encode_paths(
    records: Sequence[Record], encoder: Encoder, account: Account
) -> Iterator[tuple[Record, list[Path], dict[str, torch.Tensor]]]:
    """(record, branches, extras) of each tree that `encode_all` makes, in order, before its branches are joined.

    A record without a tree comes with no branches. `account` is told of each record before it comes. Raises
    `TooLongError` behind the last one, where some are too long under `overlong: error`.
    """
    assert encoder.overlong in OVERLONG, encoder.overlong
    long = TooLong("cutoff_len", encoder.cutoff_len)
    for start in range(0, len(records), BATCH):
        yield from _encode_batch(records[start : start + BATCH], encoder, account, long)
    if long.count:
        raise long.error(len(records))


def _encode_batch(
    records: Sequence[Record], encoder: Encoder, account: Account, long: TooLong
) -> Iterator[tuple[Record, list[Path], dict[str, torch.Tensor]]]:
    documents = [r.text for r in records if r.kind == "text" and not is_long(r.text)]
    document_ids = iter(encode_texts(encoder.tokenizer, documents))
    rendered = [[] if record.kind == "text" else located(branches_of, record, encoder) for record in records]
    flat = [
        pieces for branches in rendered if not is_endless(branches, encoder.cutoff_len) for pieces in branches
    ]
    paths = iter(encode_pieces(encoder.tokenizer, flat, bos=encoder.bos))
    for record, branches in zip(records, rendered, strict=True):
        for cause in not_in(branches, record):
            account.add(cause, record.source)
        if record.kind == "text":
            whole = not is_long(record.text)
            ids = [next(document_ids)] if whole else in_stretches(encoder.tokenizer, record.text)
            empty = True
            for piece, extras in _document(record, ids, encoder, account):
                yield record, [piece], extras
                empty = False
            if empty:
                yield record, [], {}
            continue
        if is_endless(branches, encoder.cutoff_len):
            if encoder.overlong == "error":
                raise endless(record.source, branches, encoder.cutoff_len)
            account.add("dropped: too many characters for cutoff_len", record.source)
            yield record, [], {}
            continue
        fitted = _fitted(record, [next(paths) for _ in branches], encoder, account, long)
        if fitted is None:
            yield record, [], {}
        else:
            yield record, *_judged(record, fitted, encoder)


def branches_of(record: Record, encoder: Encoder) -> list[list[Piece]]:
    """The pieces of each branch of a record; only what follows the prompt is trained."""
    assert record.kind not in ("text", "prompt"), "documents have no turns, prompts go through `prompts`"
    train_from = len(record.prompt)
    if record.kind == "chat":
        roles = [message.role for message in record.messages]
        if encoder.mask_history:
            train_from = len(roles) - 1 - roles[::-1].index(ASSISTANT)
        if encoder.train_on_prompt and not all(message.trained for message in record.messages):
            raise UserError(
                "a turn says that it is only read, but `train_on_prompt` learns all of them; remove one of the two"
            )
    return [
        encoder.template.render(branch, tools=record.tools, train_from=train_from)
        for branch in record.branches
    ]


def _judged(
    record: Record, paths: list[Path], encoder: Encoder
) -> tuple[list[Path], dict[str, torch.Tensor]]:
    """The branches as they are trained, and what people said about them."""
    extras: dict[str, torch.Tensor] = {}
    scores = [answer.score for answer in record.answers if answer.score is not None]
    labels = [float(answer.label) for answer in record.answers if answer.label is not None]
    if scores:
        extras["scores"] = torch.tensor(scores)
    if labels:
        extras["desirable"] = torch.tensor(labels)
    if record.kind == "chat" and encoder.train_on_prompt:
        ends = [
            len(flags) - flags[::-1].index(True) for _, flags in paths
        ]  # what stands behind it is the template's
        paths = [
            (ids, [0 < at < end for at in range(len(ids))]) for (ids, _), end in zip(paths, ends, strict=True)
        ]
    if record.kind in ("preference", "ranking") and encoder.score_at is not None:
        paths = [until_score(path, encoder.score_at) for path in paths]
    if record.kind in ("preference", "ranking") and not encoder.answers_trained:
        paths = [(ids, [False] * len(ids)) for ids, _ in paths]
    return paths, extras


def _document(
    record: Record, ids: Iterable[list[int]], encoder: Encoder, account: Account
) -> Iterator[tuple[Path, dict[str, torch.Tensor]]]:
    """A document, its eos token behind it, cut into pieces of at most `cutoff_len` tokens; `ids` in stretches.

    A piece after the first begins with the last token of the piece before, untrained, so that every token of the
    document but its first is trained exactly once.
    """
    if encoder.blanks is not None:
        yield from _blanked(record, ids, encoder, encoder.blanks, account)
        return
    tokenizer = encoder.tokenizer
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{record.source}: the tokenizer names no eos_token to end a document with; set eos_token in its "
            "tokenizer_config.json"
        )
    size = max(encoder.cutoff_len, 2)
    pending = [tokenizer.bos_token_id] if encoder.bos else []
    none = True
    for stretch in chain(ids, [[tokenizer.eos_token_id]]):
        pending += stretch
        start = 0
        while len(pending) - start > size:
            yield (pending[start : start + size], [False] + [True] * (size - 1)), {}
            start += size - 1
            none = False
        pending = pending[start:]
    if len(pending) > 1:
        yield (pending, [False] + [True] * (len(pending) - 1)), {}
    elif none:
        account.add(NO_TOKEN, record.source)


def _blanked(
    record: Record, ids: Iterable[list[int]], encoder: Encoder, blanks: BlankFilling, account: Account
) -> Iterator[tuple[Path, dict[str, torch.Tensor]]]:
    none = True
    for path, places in blanked(ids, record.text, blanks, encoder.cutoff_len, encoder.tokenizer.eos_token_id):
        yield path, {BLANK: torch.tensor([places], dtype=torch.float32)}
        none = False
    if none:
        account.add(NO_TOKEN, record.source)


def _fitted(
    record: Record, paths: list[Path], encoder: Encoder, account: Account, long: TooLong
) -> list[Path] | None:
    """The branches within `cutoff_len`, or None for a record that is left out; either way it is counted."""
    longest = max(len(ids) for ids, _ in paths)
    if longest > encoder.cutoff_len:
        if encoder.overlong == "error":
            long.add(record.source, longest)
            return None
        if encoder.overlong == "drop":
            account.add("dropped: longer than cutoff_len", record.source)
            return None
        trimmed: list[Path] | None
        if record.kind == "chat":
            trimmed = _trimmed_chat(record, paths[0], encoder, account)
        else:
            trimmed = _trimmed_answers(record, paths, encoder, account)
        if trimmed is None:
            account.add("dropped: answer longer than cutoff_len", record.source)
            return None
        paths = trimmed
    if not all(any(flags) for _, flags in paths):
        account.add("dropped: no trained token", record.source)
        return None
    return paths


def _trimmed_answers(
    record: Record, paths: list[Path], encoder: Encoder, account: Account
) -> list[Path] | None:
    """The same number of tokens cut from the beginning of every branch; answers stay whole."""
    excess = max(len(ids) for ids, _ in paths) - encoder.cutoff_len
    prompt = min(_prompt_length(path) for path in paths)
    if excess > prompt - 1 - encoder.bos:
        return None
    account.add("trimmed: beginning of the prompt", record.source)
    return [without_beginning(path, excess, encoder) for path in paths]


def _trimmed_chat(chat: Record, path: Path, encoder: Encoder, account: Account) -> list[Path]:
    """Without its oldest exchanges, then without the beginning of its prompt, then without the end of its answer."""
    shorter = _suffixes(chat)

    def encoded(count: int) -> Path:
        return encode_pieces(
            encoder.tokenizer, located(branches_of, shorter[count], encoder), bos=encoder.bos
        )[0]

    if shorter:
        account.add("trimmed: oldest exchanges", chat.source)
        last = len(shorter) - 1
        # The fewest exchanges to drop, by halving: a long chat is not encoded once for each of its turns.
        path = encoded(
            bisect_left(range(last), True, key=lambda count: len(encoded(count)[0]) <= encoder.cutoff_len)
        )
    excess = len(path[0]) - encoder.cutoff_len
    if excess > 0:
        spare = max(_prompt_length(path) - max(encoder.cutoff_len // 4, 2), 0)
        if spare:
            account.add("trimmed: beginning of the prompt", chat.source)
            path = without_beginning(path, min(excess, spare), encoder)
    if len(path[0]) > encoder.cutoff_len:
        account.add("trimmed: end of the answer, its end token too", chat.source)
        path = (path[0][: encoder.cutoff_len], path[1][: encoder.cutoff_len])
    return [path]


def _suffixes(chat: Record) -> list[Record]:
    """The chat without its first exchange (a user turn and all up to the next), without two of them, …"""
    system = [message for message in chat.messages[:1] if message.role == SYSTEM]
    asked = [index for index, message in enumerate(chat.messages) if message.role == USER]
    shorter = [(*system, *chat.messages[index:]) for index in asked[1:]]
    return [Record.chat(messages, chat.source, chat.tools) for messages in shorter]


def _prompt_length(path: Path) -> int:
    """Tokens before the first trained one."""
    ids, flags = path
    return flags.index(True) if True in flags else len(ids)


def without_beginning(path: Path, count: int, encoder: Encoder) -> Path:
    """`count` tokens cut from the left; a bos token stays."""
    ids, flags = path
    kept = 1 if ids[:1] == [encoder.tokenizer.bos_token_id] else 0
    return ids[:kept] + ids[kept + count :], flags[:kept] + flags[kept + count :]
