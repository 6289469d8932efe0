"""The training stages, one file each: what it learns and the `Stage` that says what the rest must know of it.

A new one is a file here and its name in `NAMES`.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.resources import files

NAMES = ("pretrain", "sft", "reward", "dpo", "kto", "ppo", "grpo")
"""In the order in which a model is made; a name is its module's, its value of `stage:` and its command's."""


@cache
def descriptions() -> dict[str, str]:
    """Name -> the first sentence of its module, read without an import, which costs the seconds of torch's."""
    sentences = {}
    for name in NAMES:
        text = files(__name__).joinpath(f"{name}.py").read_text("utf-8")
        sentences[name] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return sentences
