"""What the families' tokenizers are put together from; each is a `PreTrainedTokenizerFast` that saves itself as a plain
tokenizer.json (PanGu has a class of its own)."""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from espalier.models.legacy.tokenizers.sentencepiece_file import SentencePieceModel, read_model
from espalier.models.legacy.tokenizers.sentencepiece_model import fast_tokenizer

ASKED_AND_ANSWERED = (
    "{% set answered = messages[-1]['role'] == 'assistant' %}"
    "{% set asked = messages[:-1] if answered else messages %}"
)
"""The beginning of the templates of prefix language models (Jinja), which put marks into the text: the blank, then the
token that begins the answer. The models read their masks and positions off these (`legacy.prefix`), so training,
sampling and exams need nothing else. Only the last answer of such a conversation can be trained: the earlier ones are
part of the prompt."""


def wrapped(tokenizer: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    """As transformers' tokenizer, with special tokens and a chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )


def put_around(tokenizer: Tokenizer, single: str, pair: str, names: Sequence[str]) -> None:
    """Special tokens around a text and a pair, in the words of the tokenizers library."""
    ids = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def ids_behind(model: SentencePieceModel, names: Sequence[str]) -> dict[str, int]:
    """Ids for special tokens behind the pieces of the model."""
    return {name: len(model.pieces) + i for i, name in enumerate(names)}


def ids_within(model: SentencePieceModel, names: Sequence[str]) -> dict[str, int]:
    """Those of the names that are pieces of the model, with their ids."""
    known = {text: i for i, (text, _, _) in enumerate(model.pieces)}
    return {name: known[name] for name in names if name in known}


def llama_pieces(
    file: Path, settings: Mapping[str, Any], template: str | None, *, begins: bool
) -> PreTrainedTokenizerFast:
    """Llama's sentencepiece, with a bos and an eos token around a text where tokenizer_config.json says so.

    Args:
        begins: whether a text begins with the bos token where nothing is said.
    """
    model = read_model(file)
    tokenizer = fast_tokenizer(model, special=ids_within(model, ["<unk>", "<s>", "</s>"]))
    begin = "<s> " if settings.get("add_bos_token", begins) else ""
    end = " </s>" if settings.get("add_eos_token", False) else ""
    if begin or end:
        pair = f"{begin}$A{end} {begin}$B:0{end}"
        put_around(tokenizer, f"{begin}$A{end}", pair, (begin + end).split())
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    padding = settings.get("pad_token")  # its text, or a mapping with it
    padding = padding.get("content") if isinstance(padding, Mapping) else padding
    return wrapped(tokenizer, **ends, pad_token=padding or "<unk>", chat_template=template)


def byte_level(
    folder: Path, added: Sequence[str], ends: Mapping[str, str], template: str
) -> PreTrainedTokenizerFast:
    """BPE in GPT-2's form with special tokens behind its vocabulary."""
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in added])
    known = tokenizer.get_vocab()
    names = {**ends, "unk_token": "<|endoftext|>"}
    return wrapped(
        tokenizer, **{name: text for name, text in names.items() if text in known}, chat_template=template
    )
