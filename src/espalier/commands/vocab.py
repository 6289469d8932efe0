"""The commands `espalier vocab …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.commands.arguments import AllowPickle
from espalier.errors import UserError
from espalier.screen import safe

vocab = typer.Typer(no_args_is_help=True, help="A model's vocabulary.")

HELD_OUT = 10
"""One text of so many is kept apart, to judge by."""


@vocab.callback()
def _group() -> None:
    """A model's vocabulary."""


@vocab.command()
def extend(
    model: Annotated[str, typer.Argument(help="A model folder or hub id.")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="More files of --text.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Text files: .txt, or .jsonl with a column text.")
    ] = None,
    size: Annotated[int, typer.Option(help="New pieces at most.", min=1)] = 8000,
    kind: Annotated[
        str, typer.Option(help="bpe goes on with the tokenizer's own merges; sentencepiece; auto.")
    ] = "auto",
    allow_pickle: AllowPickle = False,
) -> None:
    """Train further pieces on a text, add them to a model's tokenizer, and give each a row that means the same."""
    from espalier.data.read.specs import parse_specs
    from espalier.data.store.again import all_records
    from espalier.data.store.job import Job
    from espalier.data.store.open import ReadSettings, opened
    from espalier.data.store.stack import Choice
    from espalier.disk.temporary import temporary_folder
    from espalier.engine import files
    from espalier.models import load, load_adapted
    from espalier.models.dtypes import stored_types
    from espalier.models.open import find_tokenizer, open_model
    from espalier.models.run_folder import find_model
    from espalier.models.saved import save_model
    from espalier.models.tokenizers import new_pieces, vocabulary

    if kind not in ("auto", "bpe", "sentencepiece"):
        raise UserError(f"--kind {kind}: wanted auto, bpe or sentencepiece.")
    named = [*(text or []), *(more or [])]
    if not named:
        raise UserError("--text is missing: name the files to learn pieces from.")
    files.check_new_folder(out)
    model = find_model(model)
    load.check_folder(model, allow_pickle=allow_pickle)
    tokenizer = find_tokenizer(model) or load.load_tokenizer(model)
    settings = new_pieces.fast(tokenizer)
    specs, job = parse_specs(list(named)), Job("text")
    with temporary_folder() as folder:
        reading = ReadSettings(Path(folder))
        stack, order, _ = opened(specs, job, reading)
        records = all_records(specs, job, reading, Choice(stack, order))
        texts = [record.text for record in records]
    apart = texts[HELD_OUT - 1 :: HELD_OUT] or texts
    learned = [t for i, t in enumerate(texts) if i % HELD_OUT != HELD_OUT - 1] or texts
    way = {"BPE": "bpe", "Unigram": "sentencepiece"}[settings["model"]["type"]] if kind == "auto" else kind
    train = new_pieces.joined_pieces if way == "bpe" else new_pieces.sentencepiece_pieces
    before, old_size = vocabulary.characters_per_token(tokenizer, apart), len(tokenizer)
    unknown = vocabulary.unknown_share(tokenizer, apart)
    pieces = vocabulary.extended(tokenizer, train(tokenizer, learned, size))
    if not pieces:
        raise UserError("nothing in this text is worth a piece of its own. Give more text.")
    whole = open_model(model, device="cpu", allow_pickle=allow_pickle)
    # Rows for what the tokenizer as it was knows and the model does not.
    load.fit_vocabulary(whole.lm, whole.required_tokenizer)
    rows = vocabulary.grow_embeddings(whole.lm, tokenizer, pieces)
    types = stored_types(load_adapted.plain_base(model))
    with files.new_folder(out) as folder:
        save_model(folder, whole.tree_model(), tokenizer, types=types)
    grown = load.load_tokenizer(str(out))
    after = vocabulary.characters_per_token(grown, apart)
    shown = "  ".join(str(grown.decode([grown.get_vocab()[piece.text]])).strip() for piece in pieces[:12])
    print(safe(f"{len(pieces)} new pieces ({way}), such as {shown}"))
    print(f"vocabulary {old_size:,} -> {len(tokenizer):,}; embeddings grew by {rows:,} rows")
    print(f"characters per token on {len(apart)} held-out texts: {before:.3f} -> {after:.3f}")
    if unknown:
        left = vocabulary.unknown_share(grown, apart)
        print(f"characters there that were read as unknown: {unknown:.1%} -> {left:.1%}")
    print(safe(f"written: {out}"))
