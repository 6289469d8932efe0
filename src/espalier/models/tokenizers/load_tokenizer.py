"""Tokenizers from folders and hub ids, and what of them and a model belongs together.

Old vocabularies are read without their code (`legacy.tokenizers`); new ones are trained in `new_tokenizer`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from espalier.errors import UserError
from espalier.models.endings import ends_of
from espalier.models.legacy import checkpoint
from espalier.models.legacy.families import legacy_tokenizer
from espalier.models.quiet import first_line, quiet
from espalier.models.remote_code import came_with_code, wants_code
from espalier.models.tokenizers import marks
from espalier.models.tokenizers.new_tokenizer import bare_tokenizer
from espalier.models.tokenizers.tokenizer_file import as_written, from_file_alone
from espalier.rendering import bound_templates


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer from a model folder, a folder with vocab.json and merges.txt, or the hub."""
    quiet()
    bound_templates()
    name = str(checkpoint.fetched(name, weights=False) or name)
    folder = Path(name)
    try:
        old = legacy_tokenizer(folder) if folder.is_dir() else None
        if old is not None:
            return _completed(old)
        bare = not any((folder / name).is_file() for name in ("tokenizer_config.json", "spiece.model"))
        if folder.is_dir() and bare:
            return _completed(bare_tokenizer(folder))
        tokenizer = _of_transformers(name, trust_remote_code)
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more special
        raise UserError(
            f"{name}: no tokenizer can be loaded from here ({first_line(error)}). "
            "Set `tokenizer:` to a folder that holds tokenizer.json, or to a hub id."
        ) from error
    return for_model(_completed(tokenizer), name)


def _of_transformers(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """What AutoTokenizer makes of a folder or hub id, as long as it encodes as tokenizer.json says."""
    try:
        made: Any = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, local_files_only=Path(name).is_dir()
        )
    except Exception as error:  # whatever a class finds wrong with another's settings
        alone = from_file_alone(name, first_line(error))
        if alone is not None:
            alone.init_kwargs.pop("auto_map", None)
            return alone
        if code := wants_code(error, Path(name)):
            raise UserError(code) from error
        raise
    tokenizer = as_written(_completed(made), name)
    if not came_with_code(tokenizer):
        tokenizer.init_kwargs.pop(
            "auto_map", None
        )  # else what is saved would ask for code that is not beside it
    return tokenizer


def for_model(
    tokenizer: PreTrainedTokenizerBase, model: str | dict[str, Any] | None
) -> PreTrainedTokenizerBase:
    """The tokenizer, with the chat template that the model needs if it is an encoder-decoder.

    Args:
        tokenizer: changed in place.
        model: its folder, hub id, or the configuration of a new one.
    """
    seq2seq = None if model is None else marks.config_of_encoder_decoder(model)
    if seq2seq is not None:
        marks.give_template(tokenizer, seq2seq)
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's files of any kind."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "*.model", "*.tiktoken")
    return any(True for name in names for _ in folder.glob(name))


def _completed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.is_fast:
        # Some tokenizer.json say that every text is to be cut, or filled up, to a length; nothing is here unasked.
        backend: Any = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
    if tokenizer.pad_token is None:
        # Never read: rows are not padded, or their padding is masked. It only has to be in the vocabulary.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def end_tokens(lm: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids at which an answer ends: the tokenizer's end token, the model's own, and ``<|im_end|>``."""
    ends = set(ends_of(lm))
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    turn_end = tokenizer.get_vocab().get("<|im_end|>")
    if turn_end is not None:
        ends.add(turn_end)
    return sorted(ends)


def fit_vocabulary(lm: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Grow the embeddings when the tokenizer knows more tokens than the model; returns how many were added."""
    rows = int(lm.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    missing = len(tokenizer) - rows
    if missing > 0:
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=True)  # type: ignore[operator]
    return max(0, missing)
