"""A config as it will run: every option under its own name, what is trained, and a look at the data of each stage.

All lines but the options are comments, so what is printed is a YAML file again. No model is loaded; a stage that
starts from an earlier one's model (`run:NAME`) is looked at with the tokenizer that one will hand on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from espalier import config
from espalier.commands.inspect.coloured import ColouredRecord, shown
from espalier.commands.inspect.page import Section, write_page
from espalier.commands.inspect.trained import as_json as counts_as_json
from espalier.commands.inspect.trained import in_words, trained_parameters
from espalier.config.options import DataOptions, ModelOptions, RunOptions
from espalier.errors import UserError
from espalier.runs.catalogue import STAGES
from espalier.runs.checks import with_models_found
from espalier.runs.pipeline import ALL_CLASSES
from espalier.runs.preflight import read_as, show_preflight
from espalier.screen import Screen, json_text, safe
from espalier.stages.setup import Setup


def show_config(path: Path, limit: int, *, as_json: bool, html: Path | None) -> None:
    """Print it, then look at the data of its stages.

    Args:
        limit: how many records of each stage a page shows.

    Raises:
        UserError: a mistake in the options, data that cannot be read, or an error that the run would stop at.
    """
    console = Screen()
    raw = config.load_yaml(path)
    stages = config.split_pipeline(raw, ALL_CLASSES) if "stages" in raw else [raw]
    built: list[tuple[str, config.OptionSet]] = []
    for stage in stages:
        kind = config.stage_of(stage, ALL_CLASSES)
        built.append((kind, config.build(stage, ALL_CLASSES[kind], all_classes=ALL_CLASSES)))
        if not as_json:
            for note in config.canonical(stage)[1]:
                console.say(f"# {note}", "yellow")
            text = config.dump_yaml(built[-1][1], comments=True)
            if "stages" in raw and len(built) == 1:
                print(safe("stages:"))
            print(safe(_as_item(text) if "stages" in raw else text))
    tokenizers: dict[str, Any] = {}
    starts: dict[str, ModelOptions] = {}
    counts: dict[str, dict[str, Any]] = {}
    sections: list[Section] = []
    for kind, options in built:
        name = options[RunOptions].name or kind
        if kind in STAGES and any(str(item).startswith("run:") for item in options[DataOptions].dataset):
            console.say(f"# {name}: an earlier stage makes its data, which are not there yet", "yellow")
        elif kind in STAGES:
            setup = read_stage(kind, options, tokenizers)
            tokenizers[name] = setup.tokenizer
            starts[name] = start = start_of(options[ModelOptions], starts) or setup.option(ModelOptions)
            told, counts[name] = _counted(kind, setup, options, start)
            if not as_json:
                console.say(f"# {name}: {told}", "dim" if counts[name] else "yellow")
            result = setup.preflight.report()
            sections.append(Section(name, kind, result, _shown(kind, setup, limit) if html else []))
    if html is not None:
        write_page(html, str(path), sections)
    if as_json:
        print(json_text({s.name: s.preflight.as_json() | counts[s.name] for s in sections}))
    for section in sections:
        show_preflight(console, section.name, section.preflight, whole=True, lead="# ", quiet=as_json)


def _as_item(text: str) -> str:
    """The YAML of one stage as an item of a list.

    >>> print(_as_item("# a comment\\nstage: sft\\nseed: 1\\n"), end="")
      # a comment
      - stage: sft
        seed: 1
    """
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    leads = ["  "] * first + ["  - "] + ["    "] * (len(lines) - first - 1)
    return "".join(f"{lead}{line}".rstrip() + "\n" for lead, line in zip(leads, lines, strict=True))


def _counted(
    kind: str, setup: Setup, options: config.OptionSet, start: ModelOptions
) -> tuple[str, dict[str, Any]]:
    """What is trained, in words and as JSON; {} where it cannot be counted, and why."""
    try:
        parts = trained_parameters(STAGES[kind], setup, options, start)
    except UserError as error:
        return f"what is trained cannot be counted: {error}", {}
    return in_words(parts), {"trained_parameters": counts_as_json(parts)}


def start_of(model: ModelOptions, starts: Mapping[str, ModelOptions]) -> ModelOptions | None:
    """The options of the stage at which a stage's model begins; None where it is the stage itself."""
    name = model.model_name_or_path or ""
    if not name.startswith("run:"):
        return None
    return starts.get(name.removeprefix("run:").split("/")[0], model)


def read_stage(kind: str, options: config.OptionSet, tokenizers: Mapping[str, Any]) -> Setup:
    model = options[ModelOptions]
    start = (model.model_name_or_path or "").removeprefix("run:").split("/")[0]
    earlier = (model.model_name_or_path or "").startswith("run:") and model.tokenizer is None
    if earlier:
        options = options.replaced(replace(model, model_name_or_path=None))
    options = with_models_found(options, say=lambda line: None)
    kept = Path(options[RunOptions].output_dir) / "tokenized"  # of a run; a look makes no folder of its own
    setup = Setup(
        options,
        reads=STAGES[kind].reads,
        rank=0,
        world=1,
        device=torch.device("cpu"),
        say=lambda text: None,
        tokenizer=tokenizers[start] if earlier else None,
        kept=kept if kept.is_dir() else None,
    )
    read_as(STAGES[kind], setup)
    return setup


def _shown(kind: str, setup: Setup, limit: int) -> list[ColouredRecord]:
    encoder = setup.encoder(blanks=STAGES[kind].blanks(setup))
    if setup.option(DataOptions).overlong == "error":  # none is overlong, or reading had stopped
        encoder = replace(encoder, overlong="drop")
    records = setup.examples(setup.records(STAGES[kind].reads)[0], limit)
    return [shown(record, encoder) for record in records]
