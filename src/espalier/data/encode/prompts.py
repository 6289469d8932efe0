"""Prompts -> ids to sample from: those that stand before the answer when the same conversation is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from espalier.data.encode.encoding import Piece, encode_pieces
from espalier.data.encode.said import RefusedRecordError, located, not_in
from espalier.data.encode.templates import prompt_text
from espalier.data.encode.tokenise import BATCH, Encoder, branches_of, without_beginning
from espalier.data.encode.too_long import TooLong
from espalier.data.read.account import Account
from espalier.data.records import Record

_ANSWER = Piece("a", True)
"""Stands behind a prompt while it is encoded, so that its last white space has the tokens that it has in training: GPT-2's
tokenizer joins two line breaks only where nothing follows. A slow tokenizer trains pieces one by one, so it needs none."""


def encode_prompt_ids(
    records: Sequence[Record], encoder: Encoder, max_prompt_length: int, account: Account
) -> Iterator[tuple[Record, list[int] | None]]:
    """(record, ids or None) of every prompt in order; `account` is told of each record before it comes.

    Raises `TooLongError` behind the last one, where some are too long under `overlong: error`.
    """
    long = TooLong("max_prompt_length", max_prompt_length)
    answer = [_ANSWER] if encoder.tokenizer.is_fast else []
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        pieces = [[Piece(located(_prompt_text, record, encoder), False)] for record in batch]
        encoded = encode_pieces(encoder.tokenizer, [[*p, *answer] for p in pieces], bos=encoder.bos)
        for record, rendered, (tokens, trained) in zip(batch, pieces, encoded, strict=True):
            ids = tokens[: trained.index(True)] if answer else tokens
            for cause in not_in([rendered], record):
                account.add(cause, record.source)
            if len(ids) > max_prompt_length:
                if encoder.overlong != "trim":
                    if encoder.overlong == "error":
                        long.add(record.source, len(ids))
                    else:
                        account.add("dropped: prompt longer than max_prompt_length", record.source)
                    yield record, None
                    continue
                account.add("trimmed: beginning of the prompt", record.source)
                ids, _ = without_beginning((ids, [False] * len(ids)), len(ids) - max_prompt_length, encoder)
            yield record, ids
    if long.count:
        raise long.error(len(records))


def _prompt_text(record: Record, encoder: Encoder) -> str:
    return prompt_text(encoder.template, record.messages, tools=record.tools, prefix=record.prefix)


def refusal(record: Record, encoder: Encoder) -> str | None:
    """Why the template refuses a record of any kind; None where it takes it."""
    if record.kind == "text":
        return None
    try:
        located(_prompt_text if record.kind == "prompt" else branches_of, record, encoder)
    except RefusedRecordError as error:
        return error.reason
    return None
