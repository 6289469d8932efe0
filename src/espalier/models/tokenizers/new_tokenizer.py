"""Tokenizers that no model folder describes: trained on a user's text, or from a bare vocabulary."""

# The constructors of transformers have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import transformers
from transformers import PreTrainedTokenizerBase

from espalier.errors import UserError

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Of a new tokenizer: the padding, and the marks around a turn (the last one ends every answer)."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def bare_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A folder with only a vocabulary: byte-level BPE in the form of GPT-2, or one tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if (folder / "tokenizer.json").is_file():
        made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary, merges = str(folder / "vocab.json"), str(folder / "merges.txt")
        made = Tokenizer(models.BPE.from_file(vocabulary, merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    else:
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise UserError(
            f"{folder}: no tokenizer here (found {names}). "
            "Wanted tokenizer.json, tokenizer_config.json, or vocab.json with merges.txt."
        )
    known = made.get_vocab()
    end = "<|endoftext|>" if "<|endoftext|>" in known else None
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, pad_token=end)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS[1:])})
    if end is None:
        tokenizer.add_special_tokens({"pad_token": SPECIAL_TOKENS[0]})
    tokenizer.eos_token = SPECIAL_TOKENS[2]
    tokenizer.chat_template = CHATML
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE on the user's own text, with ChatML as its template; every text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=SPECIAL_TOKENS[2], pad_token=SPECIAL_TOKENS[0]
    )
    tokenizer.chat_template = CHATML
    return tokenizer
