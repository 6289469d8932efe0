"""A folder's tokenizer.json says how its texts are encoded, whatever class transformers picks for the folder.

`AutoTokenizer` may replace the class by one of the architecture (Qwen2Tokenizer in a qwen2 folder), which puts
its own normalizer and pre-tokenizer around the vocabulary. Ids that the model never saw in training would be
the silent result, so what was loaded is compared with the file, and loaded from the file alone where it differs.
"""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from espalier.errors import Notice, UserError

TEXTS = (
    "The quick brown fox can't jump over 13 lazy dogs; it costs $1,234.56!",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "2026年11月28日，3.14159和1000000，第12345号。",
    "7 12 345 6789 01234",
    " a space before and behind ",
    "two  spaces, three   of them,        eight",
    "one\nline\n\nand\n\n\n  def f(x):\n\treturn x\r\n",
    "\ttab\t\ttabs \t mixed",
    "“引号”、《书名》…… —— ‘quotes’ (brackets) [x] {y} <z> #%&*_~^",
    "café, cafe\u0301, naïve, ﬁ, Å, Å, １２３ＡＢＣ，カタカナ，한국어, العربية",
    "emoji 🙂 👩‍👩‍👧‍👦 🏳️‍🌈 ½ \u200b\u00a0\u3000 ends",
    "I'LL, they're; HTTPServer2Go camelCase snake_case don't",
    "",
)
"""Digits, spaces, line breaks, marks, composed and decomposed characters: what pre-tokenizers disagree about."""
SPECIALS = 8
"""As many of the file's special tokens are tried inside a text."""


def as_written(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer, or one made of the same folder's tokenizer.json alone where the two encode differently.

    Args:
        tokenizer: what transformers has made of the folder.
        name: a folder or a hub id.

    Raises:
        UserError: the file cannot be read, or no tokenizer can be made that encodes as it says.
    """
    file = _file(name, "tokenizer.json")
    if file is None:
        return tokenizer
    written = _read(file)
    difference = first_difference(tokenizer, written)
    if difference is None:
        return tokenizer
    for made in _generic(tokenizer, written, name):
        if first_difference(made, written) is None:
            warnings.warn(
                f"{name}: transformers takes its {type(tokenizer).__name__} for this folder, which encodes "
                f"{difference[:40]!r} otherwise than the folder's tokenizer.json; the file is followed "
                "(a program that asks AutoTokenizer alone will not)",
                Notice,
                stacklevel=4,
            )
            return made
    raise UserError(
        f"{name}: no tokenizer can be made that encodes {difference[:40]!r} as tokenizer.json says. "
        "Remove tokenizer_config.json, or set `tokenizer:` to another folder."
    )


def from_file_alone(name: str, why: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder whose class in transformers refuses it; None where no tokenizer.json is there.

    Args:
        name: a folder or a hub id.
        why: what the class has said.
    """
    file = _file(name, "tokenizer.json")
    if file is None:
        return None
    written = _read(file)
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
        name, local_files_only=Path(name).is_dir()
    )
    if first_difference(made, written) is not None:
        return None
    warnings.warn(
        f"{name}: the class that transformers has for this folder refuses it ({why}); "
        "the tokenizer is made of tokenizer.json alone",
        Notice,
        stacklevel=4,
    )
    return made


def _read(file: Path) -> Tokenizer:
    made = Tokenizer.from_file(str(file))
    made.no_truncation()
    made.no_padding()
    return made


def first_difference(tokenizer: PreTrainedTokenizerBase, written: Tokenizer) -> str | None:
    """The first text whose ids differ between a tokenizer and a tokenizer.json, or None."""
    specials = [token.content for token in written.get_added_tokens_decoder().values()][:SPECIALS]
    marked = [f"a{token}b {token} c" for token in specials]
    for text in (*TEXTS, *marked):
        for add in (False, True):
            try:
                theirs = list(tokenizer(text, add_special_tokens=add, verbose=False)["input_ids"])
            except Exception:  # the Rust library raises no more special one, such as for an <unk> it lacks
                return text
            if theirs != written.encode(text, add_special_tokens=add).ids:
                return text
    return None


def disagreement(
    one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, texts: Sequence[str] = ()
) -> str | None:
    """The first text to which two tokenizers give different ids, or None.

    Args:
        texts: tried beside those that pre-tokenizers disagree about, such as the marks of a template.
    """
    for text in (*TEXTS, *texts):
        ids = [list(t(text, add_special_tokens=False, verbose=False)["input_ids"]) for t in (one, other)]
        if ids[0] != ids[1]:
            return text
    return None


def _generic(
    tokenizer: PreTrainedTokenizerBase, written: Tokenizer, name: str
) -> Iterator[PreTrainedTokenizerBase]:
    """Tokenizers over the file: with all that tokenizer_config.json says; then with the loaded one's names only."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # settings for a class of their own
        yield PreTrainedTokenizerFast.from_pretrained(name, local_files_only=Path(name).is_dir())
    made = PreTrainedTokenizerFast(
        tokenizer_object=written,
        name_or_path=name,
        chat_template=tokenizer.chat_template,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **tokenizer.special_tokens_map,
    )
    known = made.get_vocab()
    added = sorted(tokenizer.added_tokens_decoder.items())
    made.add_tokens([token for _, token in added if token.content not in known])
    yield made


def _file(name: str, file: str) -> Path | None:
    """A file of a folder, or of a hub id as it lies in the cache; None where there is none."""
    folder = Path(name)
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    path: Any = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if path is None else Path(path)
