"""The command `espalier convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.commands.arguments import AllowPickle
from espalier.screen import safe


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The folder of an old checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The plain folder to write.")],
    allow_pickle: AllowPickle = False,
) -> None:
    """An old checkpoint as a plain folder of safetensors that loads without remote code."""
    from espalier.engine import files
    from espalier.models.convert import convert_folder
    from espalier.models.run_folder import find_model

    source = Path(find_model(str(source)))
    files.check_new_folder(out)
    with files.new_folder(out) as folder:
        model = convert_folder(source, folder, allow_pickle=allow_pickle)
    parameters = sum(p.numel() for p in model.parameters())
    print(safe(f"{out}: {type(model).__name__}, {parameters:,} parameters, {next(model.parameters()).dtype}"))
