"""The command `espalier export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.commands.arguments import AllowPickle, check_models
from espalier.errors import UserError
from espalier.screen import safe


def export(
    model: Annotated[str, typer.Argument(help="A model or adapter folder, or a hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to write.")],
    kind: Annotated[str, typer.Option("--type", help="Of the matrices: f32, f16 or q8_0.")] = "f16",
    allow_pickle: AllowPickle = False,
) -> None:
    """A model of the Llama family as one GGUF file, for llama.cpp and what is built on it."""
    check_models(model)
    from espalier.disk.temporary import remove_left
    from espalier.disk.writing import write_whole, writing_to
    from espalier.models.gguf.file import TYPES, check_installed, write_gguf
    from espalier.models.open import open_model
    from espalier.models.quantise.turn import dequantised

    if kind not in TYPES:
        raise UserError(f"--type {kind}: wanted {', '.join(TYPES)}.")
    if out.suffix != ".gguf":
        raise UserError(f"{out}: wanted a name that ends in .gguf.")
    if out.exists():
        raise UserError(f"{out}: exists. Choose another name.")
    check_installed()
    opened = open_model(model, device="cpu", allow_pickle=allow_pickle)
    lm, tokenizer = dequantised(opened.lm), opened.required_tokenizer
    size_of: dict[str, int] = {}
    with writing_to(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_left(out.parent, out.name)
    write_whole(out, lambda temporary: size_of.update(write_gguf(lm, tokenizer, temporary, kind)))
    sizes = ", ".join(f"{size / 2**20:,.1f} MiB {name}" for name, size in size_of.items())
    print(safe(f"written: {out} ({sizes})"))
