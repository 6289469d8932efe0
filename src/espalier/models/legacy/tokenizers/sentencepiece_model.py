"""Sentencepiece models as fast tokenizers: the same ids, from the Rust library that all other models use.

Text goes through the model's own normalisation, gets its leading space, and is cut where no piece reaches
across (before spaces, around user-defined pieces). BPE by scores becomes a list of merges: every way to put a
piece together from two others, best piece first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from espalier.models.legacy.tokenizers.sentencepiece_file import (
    BYTE,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
)

SPACE = "\u2581"
"""How sentencepiece writes a space."""
APART = "\ufdd0"
"""Stands around special tokens while ids become text; Unicode sets this character aside for such uses."""


def fast_tokenizer(
    model: SentencePieceModel,
    *,
    special: Mapping[str, int],
    written: Sequence[tuple[str, str]] = (),
) -> Tokenizer:
    """A tokenizer of the tokenizers library with the ids of a sentencepiece model.

    Args:
        model: from the file.
        special: texts that are found before anything else, and their ids; each part between them is encoded
            on its own. Ids beyond the model's pieces must follow without gaps.
        written: (text, piece) replaced before encoding and put back after decoding, in this order.
    """
    user_defined = [text for text, _, kind in model.pieces if kind == USER_DEFINED and text not in special]
    found_first = bool(user_defined) and model.kind == "bpe"  # unigram's scores do it
    made = Tokenizer(_bpe(model) if model.kind == "bpe" else _unigram(model))
    cuts: list[pre_tokenizers.PreTokenizer] = []
    if found_first and (model.dummy_prefix or model.charsmap):
        # Added tokens would begin a new text, with a space of its own. A pre-token that is a piece is taken as
        # it is; so words stay together where BPE would not arrive at each piece.
        whole = _all_within_reach(made, model)
        made.model.ignore_merges = True
        longest_first = sorted((text.replace(" ", SPACE) for text in user_defined), key=len, reverse=True)
        cuts.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated"))
    else:
        whole = True
    if whole and not any(SPACE in text.strip(SPACE) or _ends(text) for text, _, _ in model.pieces):
        cuts.append(pre_tokenizers.Split(Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+"), "isolated"))
    if cuts:
        made.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    made.normalizer = normalizers.Sequence(_normalisation(model, written))
    made.decoder = decoders.Sequence(_decoding(model, written, list(special)))
    add_special(made, special)
    if found_first and not (model.dummy_prefix or model.charsmap):
        made.add_tokens([AddedToken(text, normalized=False) for text in user_defined])
    return made


def add_special(made: Tokenizer, special: Mapping[str, int]) -> None:
    """Texts that are found before anything else, each with its id, which must follow what is there without gaps."""
    by_id = sorted(special.items(), key=lambda item: item[1])
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text, _ in by_id])
    for text, number in by_id:
        assert made.token_to_id(text) == number, f"{text} became {made.token_to_id(text)}, not {number}"


def _ends(text: str) -> bool:
    """Whether the piece goes from a word into the space after it."""
    return text.endswith(SPACE) and text.strip(SPACE) != ""


def _all_within_reach(made: Tokenizer, model: SentencePieceModel) -> bool:
    """Whether each piece, met alone, is what BPE makes of it."""
    texts = [text for text, _, kind in model.pieces if kind == NORMAL]
    encodings = made.encode_batch_fast(texts, add_special_tokens=False)
    return all(len(encoding.ids) == 1 for encoding in encodings)


def _bpe(model: SentencePieceModel) -> models.BPE:
    """Merges in the order of the scores of what they make; pieces of one score in the order of their ids."""
    vocabulary = {text: i for i, (text, _, _) in enumerate(model.pieces)}
    usable = {text: score for text, score, kind in model.pieces if kind in (NORMAL, UNUSED)}
    merges: list[tuple[float, int, tuple[str, str]]] = []
    for text, score in usable.items():
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            if left in usable and right in usable:
                merges.append((-score, vocabulary[text], (left, right)))
    merges.sort(key=lambda merge: merge[:2])
    return models.BPE(
        vocabulary,
        [pair for _, _, pair in merges],
        unk_token=model.pieces[model.unknown][0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: SentencePieceModel) -> models.Unigram:
    """User-defined pieces get a score that no other cut of the same text reaches, as in sentencepiece."""
    best = max(score for _, score, kind in model.pieces if kind == NORMAL)
    vocabulary = []
    for text, score, kind in model.pieces:
        if kind == USER_DEFINED:
            score = len(text) * best - 0.1
        elif kind not in (NORMAL, UNUSED, BYTE):
            score = -1e6  # control pieces are not found in text
        vocabulary.append((text, score))
    return models.Unigram(vocabulary, unk_id=model.unknown, byte_fallback=model.byte_fallback)


def _normalisation(
    model: SentencePieceModel, written: Sequence[tuple[str, str]]
) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = [normalizers.Replace(text, piece) for text, piece in written]
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.squeeze:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return steps


def _decoding(
    model: SentencePieceModel, written: Sequence[tuple[str, str]], special: Sequence[str]
) -> list[decoders.Decoder]:
    steps: list[decoders.Decoder] = [
        decoders.Replace(model.pieces[model.unknown][0], " \u2047 "),
        decoders.Replace(SPACE, " "),
    ]
    if model.squeeze:  # special tokens stand apart, as transformers' slow tokenizers write them
        steps += [decoders.Replace(text, f"{APART}{text}{APART}") for text in special]
    if model.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if model.dummy_prefix:  # not decoders.Strip, which panics on a text of spaces alone
        steps.append(decoders.Replace(Regex(r"\A "), ""))
    if model.squeeze:
        steps.append(decoders.Replace(Regex(rf"\A{APART}+| ?{APART}+\z"), ""))
        steps.append(decoders.Replace(Regex(f" ?{APART}+ ?"), " "))
    return steps + [decoders.Replace(piece, text) for text, piece in written]
