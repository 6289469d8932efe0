"""A tokenizer as a GGUF file describes it: pieces, kinds, scores or merges, and how text is cut before them.

llama.cpp cuts text by code of its own, which it chooses by a name; a tokenizer that cuts in a way it has no name
for is refused, because its ids would silently be others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from espalier.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of pieces, as sentencepiece numbers them."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS = {_WORDS % r"\p{N}": "qwen2", _WORDS % r"\p{N}{1,3}": "llama-bpe"}
"""Expressions that cut text before byte-level merges, and llama.cpp's names for them."""

SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """What goes into the file.

    Attributes:
        model: "gpt2" (byte-level merges) or "llama" (sentencepiece).
        cut: llama.cpp's name for how text is cut; None with sentencepiece.
        pieces, kinds: by id.
        merges: "left right", best first; empty with sentencepiece.
        scores: by id; empty with merges.
        space_prefix: sentencepiece: a space is put before each text.
    """

    model: str
    cut: str | None
    pieces: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    space_prefix: bool


def vocabulary_of(tokenizer: Any, rows: int) -> Vocabulary:
    """The vocabulary of a fast tokenizer.

    Args:
        tokenizer: of transformers.
        rows: of the model's embeddings; those without a token are filled up.

    Raises:
        UserError: it cannot be written so that llama.cpp finds the same ids.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} is no fast tokenizer, and a GGUF file cannot hold its rules."
        )
    if len(tokenizer) > rows:
        raise UserError(f"The tokenizer has {len(tokenizer)} tokens and the model {rows} rows of embeddings.")
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    model = settings["model"]
    if model["type"] != "BPE":
        raise UserError(
            f"A tokenizer of type {model['type']} cannot be written; byte-level and sentencepiece BPE can."
        )
    pieces = [f"[PAD{i}]" for i in range(rows)]
    kinds = [UNUSED] * rows
    for piece, i in model["vocab"].items():
        pieces[i], kinds[i] = piece, NORMAL
    for token in settings["added_tokens"]:
        pieces[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    cut = _byte_level_cut(settings["pre_tokenizer"])
    if cut is not None:
        _check_normalizer(settings["normalizer"], ("NFC",))
        return Vocabulary("gpt2", cut, pieces, kinds, merges, [], False)
    prefix = _space_prefix(settings["normalizer"], settings["pre_tokenizer"])
    if prefix is None or not model["byte_fallback"]:
        raise UserError(
            "This tokenizer cuts text in a way that llama.cpp has no name for, so a GGUF file with it would give other "
            f"ids. Known are GPT-2's, Qwen2's and Llama 3's way, and sentencepiece. Found: {settings['pre_tokenizer']}"
        )
    for i, piece in enumerate(pieces):
        if kinds[i] == NORMAL and len(piece) == 6 and piece.startswith("<0x"):
            kinds[i] = BYTE
    if model["unk_token"] is not None:
        kinds[model["vocab"][model["unk_token"]]] = UNKNOWN
    return Vocabulary("llama", None, pieces, kinds, [], _scores(merges, pieces, kinds), prefix)


def _byte_level_cut(cut: Any) -> str | None:
    """llama.cpp's name for the cut of a byte-level tokenizer; None where it is none of these."""
    if cut is None:
        return None
    parts = cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    if [part["type"] for part in parts] == ["ByteLevel"]:
        return "gpt-2" if parts[0]["use_regex"] and not parts[0]["add_prefix_space"] else None
    if [part["type"] for part in parts] == ["Split", "ByteLevel"]:
        split, level = parts
        plain = split["behavior"] == "Isolated" and not split["invert"]
        whole = plain and not level["use_regex"] and not level["add_prefix_space"]
        return CUTS.get(split["pattern"].get("Regex", "")) if whole else None
    return None


def _check_normalizer(normalizer: Any, allowed: tuple[str, ...]) -> None:
    if normalizer is not None and normalizer["type"] not in allowed:
        raise UserError(
            f"The tokenizer changes text first ({normalizer['type']}), which llama.cpp does not do with BPE."
        )


def _space_prefix(normalizer: Any, cut: Any) -> bool | None:
    """Whether a space goes before each text; None where this is not sentencepiece's way of cutting.

    Text must be cut nowhere, or only where no piece reaches across: before a space.
    """
    parts = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    spaces = [
        p
        for p in parts
        if p["type"] == "Replace" and p["content"] == SPACE and p["pattern"] == {"String": " "}
    ]
    prefix = [p for p in parts if p["type"] == "Prepend" and p["prepend"] == SPACE]
    if len(spaces) + len(prefix) != len(parts):
        return None
    if cut is None:
        return bool(prefix) if spaces else None
    if cut["type"] == "Metaspace" and not parts:
        return bool(cut["prepend_scheme"] in ("always", "first"))
    inner = cut.get("pretokenizers", [cut])
    before_spaces = len(inner) == 1 and inner[0]["type"] == "Split" and inner[0]["behavior"] == "Isolated"
    if before_spaces and inner[0]["pattern"].get("Regex") == f"{SPACE}*[^{SPACE}]+|{SPACE}+" and spaces:
        return bool(prefix)
    return None


def _scores(merges: list[str], pieces: list[str], kinds: list[int]) -> list[float]:
    """Scores that make the best piece first what the merges make first.

    Raises:
        UserError: the merges of one piece do not stand together, so that no score orders them.
    """
    place: dict[str, int] = {}
    last = ""
    for i, pair in enumerate(merges):
        piece = pair.replace(" ", "")
        if piece in place and piece != last:
            raise UserError(
                f"The merges of {piece!r} do not follow each other: this tokenizer orders pairs and not pieces, which "
                "sentencepiece's scores cannot say."
            )
        place.setdefault(piece, i)
        last = piece
    end = len(merges)
    return [
        0.0 if kind != NORMAL else -float(place.get(piece, end + i))
        for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
    ]
