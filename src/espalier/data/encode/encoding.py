"""Pieces of text, each trained or not -> token ids and trained flags.

A text is encoded once and whole, as the model will see it, and its trained tokens are found by their characters.
Only where a token would reach from the prompt into the answer (white space before an answer, say) is the text cut
at that place: generation begins there too, so the model will never meet the joined token.
No record, tree or length limit is known here (see `tokenise`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.errors import UserError

Path = tuple[list[int], list[bool]]

_QUIET = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
_LONG = 1 << 20
"""Characters of a text that are tokenised at once."""
_LONGEST = 1 << 22
"""Characters from which a conversation is too long for any `cutoff_len` without being tokenised."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text; `trained` says whether the model learns to write it.

    >>> [Piece("User:\\n2+3=?\\nAssistant:\\n", False), Piece("5</s>", True), Piece("\\n", False)][1].trained
    True
    """

    text: str
    trained: bool


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same text in the fewest pieces, none of them empty."""
    fewest: list[Piece] = []
    for piece in pieces:
        if not piece.text:
            continue
        if fewest and fewest[-1].trained == piece.trained:
            fewest[-1] = Piece(fewest[-1].text + piece.text, piece.trained)
        else:
            fewest.append(piece)
    return fewest


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its bos token before a text by itself."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a").input_ids[:1] == [bos]


def leading(tokenizer: Any, text: str) -> list[int]:
    """The bos token to put before a text: none where the tokenizer adds none, or a template has written it."""
    if not adds_bos(tokenizer) or text.startswith(tokenizer.bos_token):
        return []
    return [tokenizer.bos_token_id]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without special tokens; a batch is several times faster than one by one."""
    if not texts:
        return []
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        return [one.ids for one in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    ids: list[list[int]] = tokenizer(list(texts), **_QUIET).input_ids
    return ids


def encode_pieces(tokenizer: Any, rendered: Sequence[Sequence[Piece]], *, bos: bool) -> list[Path]:
    """Each list of pieces as (ids, trained), of equal length; `bos` puts a bos token before a text without one.

    Trained are the tokens whose characters begin in a trained piece; all tokens of a character that is cut into
    several bytes belong together. Raises `UserError` for a slow tokenizer that encodes pieces unlike the whole.
    """
    if not rendered:
        return []
    if tokenizer.is_fast:
        # The Rust tokenizer itself: what the call around it makes of its result costs a fifth of the time.
        texts = ["".join(piece.text for piece in pieces) for pieces in rendered]
        encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        paths = [_flagged(tokenizer, pieces, enc) for pieces, enc in zip(rendered, encodings, strict=True)]
    else:
        paths = [_piecewise(tokenizer, pieces) for pieces in rendered]
    if not bos:
        return paths
    first = tokenizer.bos_token_id
    return [(ids, flags) if ids[:1] == [first] else ([first, *ids], [False, *flags]) for ids, flags in paths]


def _flagged(tokenizer: Any, pieces: Sequence[Piece], encoding: Any) -> Path:
    """Flags of a whole encoding; asks only for the tokens at the pieces' borders, not for every offset."""
    ids: list[int] = encoding.ids
    flags = [False] * len(ids)
    place = 0
    for piece in pieces:
        end = place + len(piece.text)
        if piece.trained:
            first, crossed = _token_from(encoding, place, end, len(ids))
            # A special token that swallows the white space behind it (Phi-3's do) says nothing of the answer.
            if crossed and ids[first - 1] not in tokenizer.added_tokens_decoder:
                cut = _cut(tokenizer, pieces)
                if cut is not None:
                    return cut
                first -= 1  # the joined token carries the answer's beginning, so it is learned with it
            last, _ = _token_from(encoding, end, None, len(ids))
            flags[first:last] = [True] * (last - first)
        place = end
    return ids, flags


def _token_from(encoding: Any, place: int, stop: int | None, n: int) -> tuple[int, bool]:
    """(the first token that begins at character `place` or later, whether the token before it reaches beyond).

    Characters without a token (white space that a tokenizer drops) are passed over, up to `stop`.
    """
    limit = stop if stop is not None else (encoding.token_to_chars(n - 1)[1] if n else 0)
    while place < limit:
        token = encoding.char_to_token(place)
        if token is not None:
            crossed = encoding.token_to_chars(token)[0] < place
            while token < n and encoding.token_to_chars(token)[0] < place:
                token += 1
            return token, crossed
        place += 1
    if stop is None:
        return n, False
    return _token_from(encoding, place, None, n)[0], False


def _cut(tokenizer: Any, pieces: Sequence[Piece]) -> Path | None:
    """The text encoded piece by piece; None if this tokenizer cannot join its parts again (it adds spaces)."""
    ids: list[int] = []
    flags: list[bool] = []
    for piece in pieces:
        own = tokenizer(piece.text, **_QUIET).input_ids
        ids += own
        flags += [piece.trained] * len(own)
    text = "".join(piece.text for piece in pieces)
    decoded = _decoded(tokenizer, ids)
    same = decoded == text or decoded == _decoded(tokenizer, tokenizer(text, **_QUIET).input_ids)
    return (ids, flags) if same else None


def _piecewise(tokenizer: Any, pieces: Sequence[Piece]) -> Path:
    """For slow tokenizers, which know no characters: piece by piece, refused where the whole would read differently."""
    cut = _cut(tokenizer, pieces)
    if cut is None:
        raise UserError(
            f"the slow tokenizer {type(tokenizer).__name__} writes text in pieces differently from the whole, so trained "
            "tokens cannot be told; use its fast version (a tokenizer.json in the model's folder)"
        )
    return cut


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def is_long(text: str) -> bool:
    """Whether a text is tokenised in stretches."""
    return len(text) > _LONG


def in_stretches(tokenizer: Any, text: str) -> Iterator[list[int]]:
    """The tokens of a long text a stretch at a time, cut behind a line break, or else anywhere."""
    start = 0
    while start < len(text):
        end = start + _LONG
        line = text.rfind("\n", start, end) + 1 if end < len(text) else len(text)
        end = line if line > start else min(end, len(text))
        yield encode_texts(tokenizer, [text[start:end]])[0]
        start = end


def is_endless(branches: Sequence[Sequence[Piece]], cutoff_len: int) -> bool:
    """Whether a branch has so many characters that it need not be tokenised to be known as too long.

    No tokenizer's tokens have 64 characters on average, so nothing below the limit is wronged.
    """
    return _characters(branches) > min(max(_LONG, 64 * cutoff_len), _LONGEST)


def endless(source: str, branches: Sequence[Sequence[Piece]], cutoff_len: int) -> UserError:
    """The error about such a record."""
    return UserError(
        f"{source}: {_characters(branches):,} characters in one record, but cutoff_len is {cutoff_len} tokens; are "
        "line breaks between records missing? Split it, or say `overlong: drop` to leave it out"
    )


def _characters(branches: Sequence[Sequence[Piece]]) -> int:
    return max((sum(len(piece.text) for piece in pieces) for pieces in branches), default=0)
