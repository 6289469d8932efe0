"""RWKV-4 (Peng et al. 2023) from the names of its own training code: one .pth file without a configuration.

Its sizes are read off the tensors. The format of transformers (``model_type: rwkv``) needs no conversion.
Later generations (RWKV-5 and on) have other blocks, which transformers does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import RwkvConfig, RwkvForCausalLM

from espalier.errors import UserError
from espalier.models.legacy.conversion import Conversion, Named
from espalier.models.legacy.family import Family
from espalier.models.legacy.weights import read_tensors

_NAMES = {
    "emb.": "embeddings.",
    ".ln0.": ".pre_ln.",
    ".att.": ".attention.",
    ".ffn.": ".feed_forward.",
    ".time_mix_k": ".time_mix_key",
    ".time_mix_v": ".time_mix_value",
    ".time_mix_r": ".time_mix_receptance",
}


def sizes(folder: Path, *, allow_pickle: bool) -> dict[str, Any]:
    """A configuration from the shapes of the tensors; the file's name may say the context (``ctx4096``).

    Raises:
        UserError: not RWKV-4.
    """
    shapes = {name: tuple(t.shape) for name, t in read_tensors(folder, allow_pickle=allow_pickle)}
    wanted = ("emb.weight", "head.weight", "blocks.0.att.time_decay", "blocks.0.ffn.key.weight")
    missing = [name for name in wanted if name not in shapes]
    later = [name for name in shapes if name.endswith((".att.ln_x.weight", ".att.time_faaaa"))]
    if missing or later:
        mark = f"no {missing[0]}" if missing else f"{later[0]}, of a later generation"
        raise UserError(
            f"{folder}: these are not the tensors of RWKV-4 ({mark}). A folder without config.json is taken "
            "for RWKV-4's own format; for anything else copy the config.json beside the weights."
        )
    files = [folder] if folder.is_file() else sorted(folder.glob("*.pth"))
    named = re.search(r"ctx(\d+)", " ".join(file.name for file in files))
    return {
        "model_type": "rwkv_original",
        "vocab_size": shapes["emb.weight"][0],
        "hidden_size": shapes["emb.weight"][1],
        "attention_hidden_size": shapes["blocks.0.att.key.weight"][0],
        "intermediate_size": shapes["blocks.0.ffn.key.weight"][0],
        "num_hidden_layers": 1 + max(int(n.split(".")[1]) for n in shapes if n.startswith("blocks.")),
        "context_length": int(named[1]) if named else 1024,
    }


def rwkv(old: Mapping[str, Any]) -> Conversion:
    """RWKV-4 from `sizes`."""
    settings = {name: value for name, value in old.items() if name != "model_type"}

    def place(name: str, tensor: Tensor) -> Named:
        for old_part, new_part in _NAMES.items():
            if old_part.endswith("."):
                name = name.replace(old_part, new_part)
            elif name.endswith(old_part):
                name = name.removesuffix(old_part) + new_part
        return [(name if name.startswith("head.") else f"rwkv.{name}", tensor)]

    # Transformers halves weights in evaluation, for fp16 alone, and would save them so.
    config = RwkvConfig(**settings, rescale_every=0, tie_word_embeddings=False)
    return Conversion(config, RwkvForCausalLM, place)


FAMILIES = (Family(name="rwkv_original", model_types=("rwkv_original",), convert=rwkv, sizes=sizes),)
