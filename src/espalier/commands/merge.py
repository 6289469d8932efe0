"""The command `espalier merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.commands.arguments import AllowPickle, DtypeName
from espalier.errors import UserError
from espalier.screen import safe


def merge(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER [ADAPTER ...] OUT",
            help="Adapters' or runs' folders, in the order of their training; then the folder to write.",
        ),
    ],
    base: Annotated[
        str | None, typer.Option(help="Merge into this model, not into the one the first adapter names.")
    ] = None,
    dtype: DtypeName = "auto",
    allow_pickle: AllowPickle = False,
) -> None:
    """Adapters and their base model as one plain model folder, in the base's own type of number."""
    from espalier.engine import files
    from espalier.models import load
    from espalier.models.dtypes import round_weights, wanted_types
    from espalier.models.merging import merged_stack, stack_of
    from espalier.models.open import OpenModel
    from espalier.models.run_folder import find_model
    from espalier.models.saved import read_scalar_head, save_model

    if len(paths) < 2:
        raise UserError(
            "wanted an adapter's folder and then the folder to write, such as: merge RUN/sft/model OUT"
        )
    *named, last = paths
    folders = [find_model(name) for name in named]
    out = Path(last)
    stack = stack_of(folders, base and find_model(base))
    files.check_new_folder(out)
    types = wanted_types(dtype, stack.base)
    lm = merged_stack(stack, allow_pickle=allow_pickle, types=types)
    with_tokenizer = [name for name in stack.adapters if load.has_tokenizer(Path(name))]
    tokenizer = load.load_tokenizer(with_tokenizer[-1] if with_tokenizer else stack.base)
    merged = OpenModel(
        stack.adapters[-1], lm, tokenizer, read_scalar_head(stack.adapters[-1], allow_pickle=allow_pickle)
    )
    model = merged.tree_model()
    round_weights(lm, types)  # one weight at a time: a copy of all would not fit where the model hardly does
    with files.new_folder(out) as folder:
        save_model(folder, model, tokenizer, types=types)
    print(safe(f"written: {out} ({' + '.join([stack.base, *stack.adapters])}; {types})"))
