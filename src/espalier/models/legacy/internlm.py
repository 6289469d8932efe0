"""InternLM, the first generation: Llama's code and names, with biases in its attention.

Its `rotary` key (newer files) is taken as its code is remembered, and was not compared with it.
"""

from __future__ import annotations

from functools import partial

from transformers import PreTrainedTokenizerFast

from espalier.models.legacy.family import Family, VocabularyFiles
from espalier.models.legacy.llama_like import llama_like
from espalier.models.legacy.tokenizers.build import llama_pieces

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<eoa>\n"
    "{% elif m['role'] == 'user' %}<|User|>:{{ m['content'] }}<eoh>\n<|Bot|>:"
    "{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
)


def tokenizer(files: VocabularyFiles) -> PreTrainedTokenizerFast | None:
    """Sentencepiece, with a bos token in front unless the configuration says otherwise."""
    own = files.tokenizer_class.lower().startswith("internlm") or files.model_type == "internlm"
    if not own or not files.named("tokenizer.model"):
        return None
    return llama_pieces(files.folder / "tokenizer.model", files.settings, TEMPLATE, begins=True)


FAMILIES = (
    Family(
        name="internlm",
        model_types=("internlm",),
        convert=partial(llama_like, biased=True),
        tokenizer=tokenizer,
    ),
)
