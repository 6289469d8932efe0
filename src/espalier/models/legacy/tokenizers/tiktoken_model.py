"""Files of tiktoken (base64 bytes and a rank a line) as fast tokenizers: Qwen, and GLM-4.

A rank is the order in which pieces were made, so the two parts of each piece are what its bytes become under
the pieces before it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from espalier.errors import UserError
from espalier.models.legacy.tokenizers.sentencepiece_model import add_special

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before BPE: contractions, words, numbers, punctuation, lines, spaces."""

QWEN = _WORDS.format(digits="")
GLM_4 = _WORDS.format(digits="{1,3}")


def read_ranks(file: Path) -> dict[bytes, int]:
    """Pieces and their ranks.

    Raises:
        UserError: a line that is not base64 and a number.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise UserError(
                f"{file}:{number}: is no line of a tiktoken file ({error}). Wanted base64 and a rank; a pointer "
                "of Git LFS must be fetched first."
            ) from error
    return ranks


def fast_tokenizer(
    ranks: Mapping[bytes, int], *, pattern: str, special: Mapping[str, int], compose: bool
) -> Tokenizer:
    """A tokenizer of the tokenizers library with the ids of a tiktoken file.

    Args:
        ranks: from `read_ranks`.
        pattern: that cuts text into words.
        special: texts that are found before anything else, and their ids, which follow the ranks.
        compose: whether text is brought into Unicode's composed form (NFC) first.
    """
    written = _alphabet()
    vocabulary = {"".join(written[b] for b in piece): rank for piece, rank in ranks.items()}
    merges = []
    for piece, _ in sorted(ranks.items(), key=lambda item: item[1]):
        if len(piece) > 1:
            left, right = _parts(piece, ranks)
            merges.append(("".join(written[b] for b in left), "".join(written[b] for b in right)))
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    if compose:
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    add_special(made, special)
    return made


def _parts(piece: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two pieces that make this one: merge by rank, until the last merge would be the piece itself."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    never = len(ranks)
    while len(parts) > 2:
        joined = [ranks.get(parts[i] + parts[i + 1], never) for i in range(len(parts) - 1)]
        at = min(range(len(joined)), key=joined.__getitem__)
        assert joined[at] < never, f"{piece!r} cannot be reached by merges"
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _alphabet() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself if printable, else one from U+0100 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]
