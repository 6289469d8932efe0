"""The pieces that a user's text asks for and a tokenizer has not.

A BPE goes on where its training stopped: text is cut as the tokenizer cuts it now, and the most frequent neighbours
are joined, again and again. Every old piece keeps its id and every old merge comes first, so a text becomes what it
was with some pieces joined; and each new piece *is* a sequence of old ones, whose mean its row begins as.

A Unigram, and on request a BPE in sentencepiece's form, gets the pieces that sentencepiece finds in the text.

Left out: WordPiece, and numbers, whose digits stay as the tokenizer has them.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from espalier.errors import UserError

SPACE = "\u2581"
"""How sentencepiece writes a space."""

MARKS = (SPACE, "\u0120")
"""How pieces write a space at their beginning: sentencepiece's, and that of byte-level BPE."""

FIRST = 0x20000
"""Where the characters begin that stand for old pieces while the new ones are found."""


@dataclass(frozen=True)
class NewPiece:
    """A new piece.

    Attributes:
        text: as it stands in the vocabulary.
        parts: ids of the old pieces that its text was cut into.
        pair: the two pieces (old or new) that make it; None where no merge is known.
        score: Unigram's.
    """

    text: str
    parts: tuple[int, ...]
    pair: tuple[str, str] | None = None
    score: float = 0.0


def fast(tokenizer: Any) -> Any:
    """The tokenizers library's object behind a tokenizer, as JSON.

    Raises:
        UserError: there is none, or it cannot be extended.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} cuts words by a dictionary before its pieces, and cannot be extended. "
            "Take a model with a BPE or Unigram tokenizer."
        )
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, model = settings["model"]["type"], settings["model"]
    if kind not in ("BPE", "Unigram"):
        raise UserError(f"a tokenizer of type {kind} cannot be extended. Wanted BPE or Unigram.")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UserError("a BPE with marks inside of words cannot be extended.")
    return settings


def joined_pieces(tokenizer: Any, texts: Iterable[str], size: int) -> list[NewPiece]:
    """The BPE's own training, continued on these texts: at most `size` new pieces, the most frequent first.

    Args:
        tokenizer: a BPE.
        size: at least 1.
    """
    settings = fast(tokenizer)
    if settings["model"]["type"] != "BPE":
        raise UserError(
            "--kind bpe goes on with a BPE, and this tokenizer is a Unigram. Use --kind sentencepiece."
        )
    by_id = {number: text for text, number in tokenizer.get_vocab().items()}
    barred = set(tokenizer.all_special_ids) | {i for i, text in by_id.items() if _is_byte(text)}
    barred |= {token["id"] for token in settings["added_tokens"]}
    used: set[str] = set()

    def words() -> Iterator[str]:
        for batch in _batches(texts):
            for text, encoding in zip(
                batch, tokenizer.backend_tokenizer.encode_batch(batch, add_special_tokens=False), strict=True
            ):
                line = " ".join(
                    "".join(chr(FIRST + i) for i in word) for word in _words(text, encoding, barred, by_id)
                )
                used.update(line)
                yield line

    lines = list(words())
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = len(used - {" "})
    made.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=alphabet + size, min_frequency=2, show_progress=False)
    )
    vocabulary = set(by_id.values())
    pieces = []
    for left, right in json.loads(made.to_str())["model"]["merges"]:
        parts = tuple(ord(c) - FIRST for c in left + right)
        text = "".join(by_id[i] for i in parts)
        # An old piece of the same text exists where the old merges do not lead to it; it is led to now.
        pair = ("".join(by_id[ord(c) - FIRST] for c in left), "".join(by_id[ord(c) - FIRST] for c in right))
        pieces.append(NewPiece(text, parts, pair))
        vocabulary.add(text)
    return pieces


def _words(text: str, encoding: Any, barred: set[int], by_id: dict[int, str]) -> Iterator[list[int]]:
    """Runs of ids between which pieces may be joined: of one pre-token, one word, and one kind of character."""
    word: list[int] = []
    where, kind = -1, ""  # of the token before: its pre-token, and the kind of its last character
    for number, index, (start, end) in zip(encoding.ids, encoding.word_ids, encoding.offsets, strict=True):
        inside = text[start:end].strip()
        first, last = (_class(inside[0]), _class(inside[-1])) if inside else ("space", "space")
        bars = number in barred or "number" in (first, last)
        spaced = first == "space" or by_id[number].startswith(MARKS)
        after_space = kind == "space"  # a space goes with what follows it
        if bars or index != where or (not after_space and (spaced or first != kind)):
            if len(word) > 1:
                yield word
            word = []
        if not bars:
            word.append(number)
        where, kind = (-1, "") if bars else (index, last)
    if len(word) > 1:
        yield word


def _class(character: str) -> str:
    kind = unicodedata.category(character)[0]
    return {"L": "letter", "M": "letter", "N": "number"}.get(kind, "other")


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _batches(texts: Iterable[str], size: int = 512) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def sentencepiece_pieces(tokenizer: Any, texts: Iterable[str], size: int) -> list[NewPiece]:
    """Pieces that sentencepiece finds in these texts and the tokenizer has not, the best first.

    Before them all come the characters that the tokenizer has no piece for, not even in bytes.

    Raises:
        UserError: sentencepiece is not installed, or the tokenizer works on bytes.
    """
    settings = fast(tokenizer)
    unigram = settings["model"]["type"] == "Unigram"
    if (
        not unigram
        and SPACE + "a" not in tokenizer.get_vocab()
        and not settings["model"].get("byte_fallback")
    ):
        raise UserError("--kind sentencepiece is for tokenizers that write a space as ▁. Use --kind bpe.")
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            "--kind sentencepiece needs sentencepiece. Install it: pip install 'espalier-llm[legacy]'"
        ) from error
    import io

    normalise = tokenizer.backend_tokenizer.normalizer
    lines = [
        (normalise.normalize_str(text) if normalise is not None else text).replace(SPACE, " ")
        for text in texts
    ]
    known = tokenizer.get_vocab()
    written = io.BytesIO()
    # More than are wanted, because many of the best are there already.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in lines for line in text.splitlines() if line.strip()),
        model_writer=written,
        model_type="unigram" if unigram else "bpe",
        vocab_size=_wanted(lines, size, known),
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        split_digits=True,
        max_sentence_length=1 << 20,
        num_threads=2,
        minloglevel=2,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    characters, longer = [], []
    for i in range(trained.get_piece_size()):
        text = trained.id_to_piece(i)
        if trained.is_control(i) or trained.is_unknown(i) or text in known:
            continue
        parts = _cut(tokenizer, text)
        piece = NewPiece(text, parts, None, trained.get_score(i))
        if len(text.strip(SPACE)) > 1 and parts:
            longer.append(piece)
        elif len(text) == 1 and parts == (tokenizer.unk_token_id,):
            characters.append(piece)
    return (characters + longer)[:size]


def _wanted(lines: Sequence[str], size: int, known: dict[str, int]) -> int:
    characters = len({c for line in lines for c in line})
    return max(characters + 16, min(2 * size + characters, size + len(known)))


def _cut(tokenizer: Any, piece: str) -> tuple[int, ...]:
    """The old pieces of a piece's text, among them the unknown one for characters that no piece has."""
    return tuple(token.id for token in tokenizer.backend_tokenizer.model.tokenize(piece))
