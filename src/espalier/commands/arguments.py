"""Options that several commands have, each under one name and with one help text."""

from __future__ import annotations

from typing import Annotated

import typer

from espalier.models.hub_reach import check_reachable
from espalier.models.run_folder import check_there, find_model

AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .bin and .pth files, through torch's safe loader.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
RopeScaling = Annotated[
    str | None, typer.Option(help="Longer texts than the model was made for, such as yarn:4.")
]
DtypeName = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto, float32, bfloat16 or float16; auto: as the files, where the device computes in it.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def check_models(*names: str) -> None:
    """Raises UserError where a model is neither here nor on a hub that answers; before torch is imported."""
    for name in names:
        folder = find_model(name, say=lambda line: None)
        check_there(folder)
        check_reachable(folder)
