"""The command `espalier merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.errors import UserError


def merge(
    adapter: Annotated[str, typer.Argument(help="An adapter folder, as a run's model/.")],
    out: Annotated[Path, typer.Argument(help="The plain model folder to write.")],
) -> None:
    """An adapter and its base model as one plain model folder."""
    from espalier.engine import files
    from espalier.models import load
    from espalier.models.forward import TreeModel
    from espalier.models.probe import probe
    from espalier.models.saved import read_scalar_head, save_model

    if not (Path(adapter) / "adapter_config.json").is_file():
        raise UserError(f"{adapter}: no adapter_config.json here. Wanted a folder that PEFT has saved.")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: exists and is not empty. Choose another folder.")
    lm = load.load_with_adapter(adapter)
    tokenizer = load.load_tokenizer(adapter)
    with files.new_folder(out) as folder:
        save_model(folder, TreeModel(lm, probe(lm), read_scalar_head(adapter)), tokenizer)
    print(f"written: {out}")
