"""XVERSE: Llama's code and names; its tokenizer.json is read by transformers."""

from __future__ import annotations

from espalier.models.legacy.family import Family
from espalier.models.legacy.llama_like import llama_like

FAMILIES = (Family(name="xverse", model_types=("xverse",), convert=llama_like),)
