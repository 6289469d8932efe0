"""PanGu-alpha's tokenizer: words by jieba, a space between them, then sentencepiece.

Spaces and newlines of the text become U+2582 and U+2583 before, and come back after. Special strings such as
``<sep>`` are found first, in the text as it is, so jieba never sees them and need not be patched. What
sentencepiece's normalisation changes is lost, as in the original: full-width punctuation, tabs.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from espalier.errors import UserError
from espalier.models.legacy.tokenizers.words import cut

SPACE, NEWLINE = "\u2582", "\u2583"
SPECIAL = ("<unk>", "<s>", "</s>", "<sep>", "<pad>", "<eot>")
"""Found in text. The vocabulary's ``<mask>`` and ``<eod>`` are not, as in the original: people write them."""
FILE = "vocab.model"
BETWEEN = "\0"


class PanguTokenizer(PreTrainedTokenizer):
    """A tokenizer in transformers' convention.

    Args:
        vocab_file: the original vocab.model.

    ``上联:霜风<sep>下联:`` becomes ``<s> 上联 : 霜风 <sep> 下联 : <eot>``.
    """

    vocab_files_names = {"vocab_file": FILE}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise UserError(
                "PanGu's tokenizer needs sentencepiece, which is not installed. pip install 'espalier-llm[legacy]'."
            ) from error
        self.vocab_file = vocab_file
        try:
            self.pieces = SentencePieceProcessor(model_file=vocab_file)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{vocab_file}: is no sentencepiece model. Wanted PanGu's vocab.model."
            ) from error
        own = [text for text in SPECIAL if self.pieces.id_to_piece(self.pieces.piece_to_id(text)) == text]
        kwargs["added_tokens_decoder"] = {
            self.pieces.piece_to_id(text): AddedToken(text, normalized=False, special=True) for text in own
        } | kwargs.pop("added_tokens_decoder", {})
        names = {"bos": "<s>", "eos": "<eot>", "pad": "<pad>", "unk": "<unk>", "sep": "<sep>"}
        for name, text in names.items():
            if text in own:
                kwargs.setdefault(f"{name}_token", text)
        self._pattern: tuple[tuple[str, ...], re.Pattern[str]] = ((), re.compile("(?!)"))
        self._unknown: int = self.pieces.unk_id()
        self._ids = {self.pieces.id_to_piece(i): i for i in range(self.pieces.get_piece_size())}
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return self.pieces.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        return self._ids | self._added_tokens_encoder

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """The pieces of a text, found several times faster than by the walk through it that this replaces."""
        if kwargs.pop("split_special_tokens", self.split_special_tokens):
            return self._tokenize(text)
        pieces: list[str] = []
        for part in self._special().split(text):
            if part in self._added_tokens_encoder:
                pieces.append(part)
            elif part:
                pieces += self._tokenize(part)
        return pieces

    def _special(self) -> re.Pattern[str]:
        """Added tokens, the longest first, as a group, so that a split keeps them."""
        known = tuple(self._added_tokens_encoder)
        if self._pattern[0] != known:
            longest_first = sorted(known, key=len, reverse=True)
            self._pattern = known, re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        return self._pattern[1]

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(self.pieces.encode(_worded(text), out_type=str))

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Ids of pieces, at one look-up each; what is no piece is ``<unk>``."""
        if not isinstance(tokens, list):
            return super().convert_tokens_to_ids(tokens)
        known = self._ids | self._added_tokens_encoder if len(self) > len(self._ids) else self._ids
        return [known.get(token, self._unknown) for token in tokens]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._unknown)

    def _convert_id_to_token(self, index: int) -> str:
        """A piece; ``<unk>`` for a row that a model has beyond the vocabulary, as other tokenizers read nothing there."""
        known = 0 <= index < len(self._ids)
        return self.pieces.id_to_piece(index if known else self._unknown)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces; a special token is written as it is."""
        text = ""
        run: list[str] = []
        for token in tokens:
            if token in self._added_tokens_encoder:
                text, run = text + _plain(self.pieces.decode(run)) + token, []
            else:
                run.append(token)
        return text + _plain(self.pieces.decode(run))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """``<s>`` A ``<eot>``, or ``<s>`` A ``<sep>`` B ``<eot>``."""
        second = [] if token_ids_1 is None else [self.sep_token_id, *token_ids_1]
        return [self.bos_token_id, *token_ids_0, *second, self.eos_token_id]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        target = Path(save_directory) / ((f"{filename_prefix}-" if filename_prefix else "") + FILE)
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


def _worded(text: str) -> str:
    """The text with spaces between its words, its own spaces and newlines written out."""
    words = cut(text)
    if BETWEEN in text:
        return " ".join(word.replace(" ", SPACE).replace("\n", NEWLINE) for word in words)
    joined = BETWEEN.join(words)  # the same at a third of the cost
    return joined.replace(" ", SPACE).replace("\n", NEWLINE).replace(BETWEEN, " ")


def _plain(text: str) -> str:
    return text.replace(" ", "").replace(SPACE, " ").replace(NEWLINE, "\n")
