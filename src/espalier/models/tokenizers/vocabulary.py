"""A vocabulary that grows: new pieces in a tokenizer, rows for them in the model, and what was gained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from espalier.models.tokenizers.new_pieces import NewPiece, fast


def extended(tokenizer: Any, pieces: Sequence[NewPiece]) -> list[NewPiece]:
    """Put the pieces into the tokenizer, after everything that it has; returns those that were new.

    A piece without a pair gets every merge of two known pieces that makes it, after all merges that there are; one that
    BPE does not arrive at all the same is left out.

    Args:
        tokenizer: changed in place.
    """
    settings = fast(tokenizer)
    known = tokenizer.get_vocab()
    model = settings["model"]
    if model["type"] == "Unigram":
        fresh = [piece for piece in pieces if piece.text not in known]
        _add_unigram(settings, known, fresh)
        _put(tokenizer, settings)
        return fresh
    fresh, seen = [], set(known)
    for piece in pieces:
        if piece.text not in seen:
            fresh.append(piece)
            seen.add(piece.text)
    trial = json.loads(json.dumps(settings))
    _add_bpe(trial, known, fresh, pieces)
    if any(piece.pair is None for piece in pieces):
        made = Tokenizer.from_str(json.dumps(trial))
        kept = {p.text for p in fresh if p.pair is not None or len(made.model.tokenize(p.text)) == 1}
        if len(kept) < len(fresh):
            fresh = [piece for piece in fresh if piece.text in kept]
            _add_bpe(settings, known, fresh, fresh)
            trial = settings
    _put(tokenizer, trial)
    return fresh


def _put(tokenizer: Any, settings: dict[str, Any]) -> None:
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(settings))


def _with_added(settings: dict[str, Any], vocabulary: dict[str, int]) -> int:
    """Added tokens become entries too, or they would be numbered anew after the new ones; the next free id."""
    for token in settings["added_tokens"]:
        vocabulary.setdefault(token["content"], token["id"])
    return max(vocabulary.values()) + 1


def _add_bpe(
    settings: dict[str, Any], known: dict[str, int], fresh: Sequence[NewPiece], ordered: Sequence[NewPiece]
) -> None:
    model = settings["model"]
    vocabulary = model["vocab"]
    following = max(_with_added(settings, vocabulary), max(known.values()) + 1)
    for i, piece in enumerate(fresh):
        vocabulary[piece.text] = following + i
    merges = [m.split(" ", 1) if isinstance(m, str) else list(m) for m in model["merges"]]
    have = {tuple(m) for m in merges}
    for piece in ordered:
        if piece.pair is not None:
            pairs = [piece.pair]
        else:
            cuts = [(piece.text[:at], piece.text[at:]) for at in range(1, len(piece.text))]
            pairs = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
        for pair in pairs:
            if pair not in have:
                merges.append(list(pair))
                have.add(pair)
    model["merges"] = merges


def _add_unigram(settings: dict[str, Any], known: dict[str, int], fresh: Sequence[NewPiece]) -> None:
    entries = settings["model"]["vocab"]
    for token in sorted(settings["added_tokens"], key=lambda token: token["id"]):
        if token["id"] >= len(entries):
            assert token["id"] == len(entries), "the ids of a Unigram have no gaps"
            entries.append([token["content"], -1e6])
    entries += [[piece.text, piece.score] for piece in fresh]


@torch.no_grad()
def grow_embeddings(lm: nn.Module, tokenizer: Any, pieces: Sequence[NewPiece]) -> int:
    """A row for each new piece, the mean of its old pieces' rows, in the input and the output embeddings.

    Tied embeddings stay tied. A model with rows to spare keeps their number.

    Args:
        lm: with a row for each old id.
        tokenizer: the extended one.
        pieces: from `extended`.

    Returns:
        How many rows were added.
    """
    model: Any = lm
    before = model.get_input_embeddings().weight.shape[0]
    most = max(tokenizer.get_vocab().values()) + 1
    if most > before:
        model.resize_token_embeddings(most, mean_resizing=False)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    rows = [inputs.weight]
    if outputs is not None and outputs.weight is not inputs.weight:
        rows.append(outputs.weight)
    if outputs is not None and getattr(outputs, "bias", None) is not None:
        rows.append(outputs.bias)
    vocabulary = tokenizer.get_vocab()
    for weight in rows:
        for piece in pieces:
            weight[vocabulary[piece.text]] = weight[list(piece.parts)].float().mean(0).to(weight.dtype)
    return int(max(0, most - before))


def characters_per_token(tokenizer: Any, texts: Sequence[str]) -> float:
    """Characters of all texts by their tokens."""
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return sum(map(len, texts)) / max(1, sum(len(e.ids) for e in encoded))


def unknown_share(tokenizer: Any, texts: Sequence[str]) -> float:
    """How much of the texts' characters the tokenizer reads as unknown, 0 to 1."""
    lost = 0
    for encoded in tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False):
        places = zip(encoded.ids, encoded.offsets, strict=True)
        lost += sum(end - start for i, (start, end) in places if i == tokenizer.unk_token_id)
    return lost / max(1, sum(map(len, texts)))
