"""Aquila: Llama's code and names, with a byte-level vocabulary."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from espalier.models.legacy.family import Family, VocabularyFiles
from espalier.models.legacy.llama_like import llama_like
from espalier.models.legacy.tokenizers.build import byte_level

SPECIAL = (
    *("<|startofpiece|>", "<|endofpiece|>", "[UNUSED]", "[MASK]", "[gMASK]", "[sMASK]", "[CLS]", "</s>"),
)
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}</s>"
    "{% elif m['role'] == 'user' %}Human: {{ m['content'] }}###Assistant:"
    "{% else %}{{ m['content'] }}###{% endif %}{% endfor %}"
)


def tokenizer(files: VocabularyFiles) -> PreTrainedTokenizerFast | None:
    """GPT-2's files in a folder of an Aquila, or with its ends."""
    ends = (files.settings.get("bos_token"), files.settings.get("eos_token"))
    if not files.named("vocab.json", "merges.txt"):
        return None
    if files.model_type != "aquila" and ends != ("[CLS]", "</s>"):
        return None
    names = {"bos_token": "[CLS]", "eos_token": "</s>", "pad_token": "<|endoftext|>"}
    return byte_level(files.folder, SPECIAL, names, TEMPLATE)


FAMILIES = (Family(name="aquila", model_types=("aquila",), convert=llama_like, tokenizer=tokenizer),)
