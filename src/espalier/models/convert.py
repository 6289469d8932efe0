"""Any checkpoint folder as a plain one: safetensors, a configuration of today, and no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from espalier.disk.writing import check_new_folder
from espalier.models.forward import Traits, TreeModel
from espalier.models.load import has_tokenizer, load_lm, load_tokenizer
from espalier.models.saved import read_scalar_head, save_model


def convert_folder(folder: Path, out: Path, *, allow_pickle: bool = False) -> nn.Module:
    """Write the model of a checkpoint folder as a plain one, in the file's own precision.

    The tokenizer is written beside it where the folder has one, and the head of a reward model. What is written loads without remote code: through
    transformers alone where it has the architecture, else through Espalier.

    Args:
        folder: to read; or one .pth file of RWKV.
        out: a new or empty folder.
        allow_pickle: whether .bin, .pth and .pt may be read, through torch's safe loader.

    Returns:
        The model, as it was written.

    Raises:
        UserError: `out` is not empty, or `folder` cannot be loaded.
    """
    check_new_folder(out)
    model: Any = load_lm(str(folder), dtype=None, allow_pickle=allow_pickle)
    tokenizer = load_tokenizer(str(folder)) if folder.is_dir() and has_tokenizer(folder) else None
    head = read_scalar_head(str(folder), allow_pickle=allow_pickle)
    if head is not None:
        out.mkdir(parents=True, exist_ok=True)
        save_model(out, TreeModel(model, Traits("padded", True, {}, "not asked"), head), tokenizer)
        return model  # type: ignore[no-any-return]
    model.save_pretrained(str(out), safe_serialization=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(out))
    plain: nn.Module = model
    return plain
