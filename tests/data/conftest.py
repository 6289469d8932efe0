"""Real tokenizers, loaded once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from transformers import AutoTokenizer, GPT2Tokenizer

from tests.conftest import Vocabulary

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def aquila(vocabulary: Vocabulary) -> Any:
    """A byte-level BPE of 100,000 Chinese and English pieces, given a ChatML template."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(vocabulary("aquila_bpe"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def gpt2(vocabulary: Vocabulary) -> Any:
    """GPT-2's tokenizer, which has no chat template and cuts every Chinese character into bytes."""
    folder = vocabulary("gpt2")
    return GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
