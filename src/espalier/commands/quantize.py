"""The command `espalier quantize`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.commands.arguments import AllowPickle, AsJson
from espalier.errors import UserError
from espalier.screen import Screen, json_text

TEXT = (
    "The espalier is a tree trained along a frame: its trunk is shared, its branches go their own ways, and the "
    "gardener keeps what bears fruit. In winter the wood rests. When the sap rises again, each bud opens where the "
    "light is, and by the end of the summer twelve baskets of pears stand in the cool of the cellar.",
    "从前有一座小山村，村口有一棵很老的梨树。每到春天，树上开满白色的花；到了秋天，孩子们就在树下等着熟透的梨掉下来。"
    "有一年大旱，河水都干了，大家轮流从三里外的泉眼挑水，把老树救活了。第二年，它结的果子比哪一年都多。",
    "Question: a train leaves at 9:40 and arrives at 13:05. How long does the journey take? Answer: from 9:40 to "
    "12:40 are three hours, and 25 minutes more make 3 hours and 25 minutes.",
)
"""What is measured on where no data is named: a few plain sentences."""


def quantize(
    model: Annotated[str, typer.Argument(help="A model or adapter folder, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    method: Annotated[str, typer.Option(help="cpm, bnb or torchao.")] = "cpm",
    bits: Annotated[int, typer.Option(help="Of one weight: cpm and bnb 4 or 8, torchao 2, 3, 4 or 8.")] = 8,
    kind: Annotated[str, typer.Option("--type", help="bnb's 4 bits: nf4 or fp4.")] = "nf4",
    double: Annotated[
        bool, typer.Option("--double/--no-double", help="bnb's 4 bits: quantise the scales too.")
    ] = True,
    group_size: Annotated[
        int | None, typer.Option(help="torchao's 2 to 4 bits: weights that share a scale (32).")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="cpm: texts by which errors of rounding make up for each other (GPTQ).")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Records to measure on; else a few sentences of ours.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Measure, and calibrate, on at most so many tokens.")] = 4096,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Without it the plain model is never held in full.")
    ] = True,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """A model with its linear layers in few bits, and what that costs: size, speed, logits, perplexity."""
    from espalier.engine import files
    from espalier.models import load
    from espalier.models.quantise.methods import Quantisation, described, entry_of, settings
    from espalier.models.run_folder import find_model

    if kind not in ("nf4", "fp4"):
        raise UserError(f"--type {kind}: wanted nf4 or fp4.")
    files.check_new_folder(out)
    wanted = Quantisation(method, bits, kind, double, group_size)  # type: ignore[arg-type]
    settings(wanted)  # everything that is wrong with it is said before anything is read
    model = find_model(model)
    load.check_folder(model, allow_pickle=allow_pickle)
    entry = entry_of(model)
    if entry is not None:
        raise UserError(
            f"{model}: is quantised already ({described(entry)}). Name the model that it was made from."
        )
    if calibration is not None and method != "cpm":
        raise UserError(f"--calibration belongs to cpm; {method} rounds without texts. Remove it.")
    rows = _rows(model, data, tokens) if measure else []
    texts = _rows(model, calibration, tokens) if calibration is not None else []
    facts = _write(model, out, wanted, texts, allow_pickle=allow_pickle)
    if measure:
        facts |= _measured(model, out, rows, allow_pickle=allow_pickle)
    if as_json:
        print(json_text(facts))
    else:
        _show(facts, data)


def _write(model: str, out: Path, wanted: Any, texts: list[Any], *, allow_pickle: bool) -> dict[str, Any]:
    from espalier.engine import files
    from espalier.models.open import open_model
    from espalier.models.quantise.calibrated import calibrate
    from espalier.models.quantise.sizes import disk_bytes, held_bytes
    from espalier.models.quantise.turn import quantised
    from espalier.models.saved import save_model

    at_once = None if texts else wanted
    opened = open_model(model, device="cpu", allow_pickle=allow_pickle, quantisation=at_once)
    if texts:
        small = quantised(opened.lm, wanted)
        calibrate(opened.lm, small, [tokens for tokens, _ in _fitting(opened.lm, texts)])
        opened = replace(opened, lm=small)
    tree_model = opened.tree_model()
    with files.new_folder(out) as folder:
        save_model(folder, tree_model, opened.tokenizer)
    return {
        "model": model,
        "out": str(out),
        "quantisation": str(wanted) + (", calibrated" if texts else ""),
        "layout": tree_model.traits.reason,
        "disk_bytes": disk_bytes(model),
        "disk_bytes_after": disk_bytes(out),
        "memory_bytes_after": held_bytes(opened.lm),
    }


def _measured(model: str, out: Path, rows: list[Any], *, allow_pickle: bool) -> dict[str, Any]:
    """The folder as it was written, against the model."""
    from espalier.models.measure import compare
    from espalier.models.open import open_model
    from espalier.models.quantise.sizes import held_bytes

    plain, small = open_model(model, allow_pickle=allow_pickle).lm, open_model(str(out)).lm
    return {"memory_bytes": held_bytes(plain), **asdict(compare(plain, small, _fitting(plain, rows)))}


def _fitting(lm: Any, rows: list[Any]) -> list[Any]:
    """The rows as far as the model can read them."""
    from espalier.models import load

    limit = load.context_length(lm)
    readable = [(tokens[:limit], scored[:limit]) for tokens, scored in rows]
    readable = [(tokens, scored) for tokens, scored in readable if any(scored)]
    if not readable:
        raise UserError(
            f"no text to measure on has its answer within the {limit} tokens that this model reads. "
            "Name shorter ones with --data, or add --no-measure."
        )
    return readable


def _rows(model: str, data: str | None, limit: int) -> list[Any]:
    """Token ids and which of them count: trained ones of records, all of our own sentences."""
    from espalier.models.open import find_tokenizer
    from espalier.models.tokenizers import marks

    tokenizer = find_tokenizer(model)
    two_stacks = marks.config_of_encoder_decoder(_bottom(model))
    if tokenizer is None:
        if data is not None:
            raise UserError(f"{model}: has no tokenizer to read --data with. Copy its files into the folder.")
        if two_stacks is not None:
            raise UserError(
                f"{model}: an encoder-decoder without a tokenizer has no sentences to be measured on. "
                "Copy its files into the folder, or add --no-measure."
            )
        return [(list(range(3, 67)), [True] * 64)]
    if data is None and two_stacks is not None:
        return [_halves(tokenizer, text) for text in TEXT]
    if data is None:
        encoded = [tokenizer.encode(text) for text in TEXT]
        return [(tokens, [True] * len(tokens)) for tokens in encoded]
    from espalier.commands.inspect.data import kind_of
    from espalier.data.encode.templates import choose_template
    from espalier.data.encode.tokenise import Encoder
    from espalier.data.read.specs import parse_specs
    from espalier.data.store.job import Job
    from espalier.data.store.open import ReadSettings, opened
    from espalier.data.store.stack import Choice, stored
    from espalier.disk.temporary import temporary_folder

    specs = parse_specs(data)
    kind = kind_of(specs)
    if kind not in ("text", "chat", "preference"):
        raise UserError(f"{data}: read as {kind}; wanted texts, chats or preferences to measure on.")
    if kind == "text" and two_stacks is not None:
        raise UserError(
            f"{data}: bare texts, and {model} is an encoder-decoder. Wanted chats or preferences: questions with answers."
        )
    encoder = Encoder(tokenizer, choose_template(tokenizer, "auto"), min(512, limit), "trim")
    texts: list[Any] = []
    left = limit
    with temporary_folder() as folder:
        reading = ReadSettings(Path(folder), skip_bad=True, max_samples=limit)
        stack, order, _ = opened(specs, Job(kind, encoder), reading)
        for tree in stored(Choice(stack, order)):
            for tokens, trained in tree.paths():
                if left > 0:
                    texts.append((list(tokens), [bool(t) for t in trained]))
                    left -= len(tokens)
            if left <= 0:
                break
    if not any(any(trained) for _, trained in texts):
        raise UserError(f"{data}: nothing in it is a text that the perplexity could be of.")
    return texts


def _bottom(model: str) -> str:
    """The model below adapters' folders."""
    from espalier.models import load_adapted
    from espalier.models.adapters import adapter as adapters

    while adapters.is_adapter(model):
        model = load_adapted.base_of(model)
    return model


def _halves(tokenizer: Any, text: str) -> tuple[list[int], list[bool]]:
    """A text whose first half is asked and whose second half answers, for a model with an encoder."""
    from espalier.rendering import rendered

    chat = [
        {"role": "user", "content": text[: len(text) // 2]},
        {"role": "assistant", "content": text[len(text) // 2 :]},
    ]
    asked, whole = (
        tokenizer(dialogue, add_special_tokens=False).input_ids
        for dialogue in (
            rendered(tokenizer, chat[:1], add_generation_prompt=True),
            rendered(tokenizer, chat),
        )
    )
    return whole, [i >= len(asked) for i in range(len(whole))]


def _show(facts: dict[str, Any], data: str | None) -> None:
    from rich.table import Table

    table = Table(title=f"{facts['out']}: {facts['quantisation']}")
    for name in ("", "before", "after", "after / before"):
        table.add_column(name, justify="left" if not name else "right")

    def row(
        name: str, before: float | None, after: float | None, form: str, ratio: float | None = None
    ) -> None:
        if ratio is None and before and after is not None:
            ratio = after / before
        cells = [format(value, form) if value is not None else "" for value in (before, after)]
        table.add_row(name, *cells, "" if ratio is None else f"{ratio:.3f}")

    def mib(value: int | None) -> float | None:
        return None if value is None else value / 2**20

    before, after = facts.get("memory_bytes"), facts["memory_bytes_after"]
    row("weights on disk, MiB", mib(facts["disk_bytes"]), mib(facts["disk_bytes_after"]), ",.1f")
    row(
        "weights in memory, MiB",
        mib(sum(before.values())) if before else None,
        mib(sum(after.values())),
        ",.1f",
    )
    for kind in sorted(after):
        row(f"  {kind}, MiB", mib((before or {}).get(kind)), mib(after[kind]), ",.1f")
    if before:
        row("tokens/s, reading", facts["read"], facts["read_after"], ",.0f", facts["read_ratio"])
        row("tokens/s, writing", facts["written"], facts["written_after"], ",.1f", facts["written_ratio"])
        row(f"perplexity, {facts['tokens']:,} tokens", facts["perplexity"], facts["perplexity_after"], ",.3f")
        row("logits, mean difference", None, facts["logit_error_mean"], ".4f")
        row("logits, largest difference", None, facts["logit_error_max"], ".4f")
        row("KL, nats a token", None, facts["kl"], ".5f")
        row("same likeliest token", None, facts["same_choice"], ".1%")
    console = Screen()
    console.print(table)
    console.say(f"layout: {facts['layout']}")
    if before:
        console.say(f"measured on {data or 'a few sentences; name records with --data for more'}", "dim")
