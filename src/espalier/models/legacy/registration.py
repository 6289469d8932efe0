"""Our own old architectures, made known to transformers' Auto classes when a folder needs one.

A folder that `espalier convert` has written carries one of these model types. They have a prefix of their
own, because some of the old names mean other models today ("glm"). No code lies in the folder.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

NATIVE = {
    "espalier_pangu": ("pangu", "Pangu"),
    "espalier_qwen": ("qwen", "Qwen"),
    "espalier_baichuan": ("baichuan", "Baichuan"),
    "espalier_chatglm": ("chatglm", "ChatGLM"),
    "espalier_glm": ("glm", "GLMChinese"),
}
"""Model type to the module and to how its two classes begin: ...Config and ...ForCausalLM."""


def register(folder: Path) -> None:
    """Register the architecture of this folder's config.json where it is one of ours."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return  # whoever reads the folder next says what is wrong with it
    if kind not in NATIVE:
        return
    name, begin = NATIVE[kind]
    module = import_module(f"espalier.models.legacy.{name}")
    config = getattr(module, begin + "Config")
    AutoConfig.register(kind, config, exist_ok=True)
    AutoModelForCausalLM.register(config, getattr(module, begin + "ForCausalLM"), exist_ok=True)
