"""Looking before training: what a model is made of, what a data file trains, how a config will run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from espalier import config
from espalier.data.formats import KINDS
from espalier.data.sources import load_records
from espalier.data.specs import parse_specs
from espalier.data.templates import choose_template
from espalier.data.tokenise import Encoder, encode_all
from espalier.engine import files
from espalier.errors import UserError
from espalier.models import adapters, load
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.models.saved import read_scalar_head, save_model
from espalier.trees.tree import Tree

_console = Console()
_DATA = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz")


def inspect(what: str, *, model: str | None, template: str | None, limit: int, as_json: bool) -> None:
    """Find out what it is and show it.

    Raises:
        UserError: it is neither a model folder, nor data, nor a YAML file.
    """
    path = Path(what)
    if path.suffix in (".yaml", ".yml"):
        _show_config(path)
    elif (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        _show_model(what, as_json)
    elif path.suffix in _DATA or path.is_dir():
        _show_data(what, model, template, limit, as_json)
    else:
        raise UserError(
            f"{what}: is no model folder (config.json), no data file ({', '.join(_DATA)}) and no YAML."
        )


def _show_config(path: Path) -> None:
    from espalier.stages.pipeline import ALL_CLASSES

    raw = config.load_yaml(path)
    stages = config.split_pipeline(raw, ALL_CLASSES) if "stages" in raw else [raw]
    for stage in stages:
        kind = config.stage_of(stage, ALL_CLASSES)
        options = config.build(stage, ALL_CLASSES[kind], all_classes=ALL_CLASSES)
        for note in config.canonical(stage)[1]:
            _console.print(f"[yellow]# {note}[/]")
        print(config.dump_yaml(options.values(), comments=True))


def _show_model(name: str, as_json: bool) -> None:
    lm = load.load_with_adapter(name)
    traits = probe(lm)
    parts: Counter[str] = Counter()
    for key, parameter in lm.named_parameters():
        parts[".".join("*" if part.isdigit() else part for part in key.split("."))] += parameter.numel()
    total = sum(p.numel() for p in lm.parameters())
    settings: Any = lm.config
    facts = {
        "architecture": type(lm).__name__,
        "parameters": total,
        "memory_bytes": {"float32": 4 * total, "bfloat16": 2 * total},
        "layout": "padded" if traits.method == "padded" else "tree",
        "layout_reason": traits.reason,
        "scalar_head": read_scalar_head(name) is not None,
        "vocab_size": settings.get_text_config().vocab_size,
        "linear_layers": adapters.linear_names(lm),
        "parts": dict(parts),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(title=f"{name}: {facts['architecture']}, {total:,} parameters")
    table.add_column("parameter (* = every block)")
    table.add_column("numbers", justify="right")
    for key, count in parts.items():
        table.add_row(key, f"{count:,}")
    _console.print(table)
    _console.print(f"layout: {traits.reason}")
    _console.print(
        f"memory of the weights: {4 * total / 2**20:,.0f} MiB in float32, {2 * total / 2**20:,.0f} in 16 bits"
    )
    _console.print(f"linear layers (lora_target): {', '.join(adapters.linear_names(lm))}")


def _show_data(what: str, model: str | None, template: str | None, limit: int, as_json: bool) -> None:
    kind, loaded = _read(what)
    facts: dict[str, Any] = {
        "kind": kind,
        "records": len(loaded.records),
        "left_out": dict(loaded.left_out),
    }
    trees: list[Tree] = []
    tokenizer = None
    if model is not None and kind != "prompt":
        tokenizer = load.load_tokenizer(model)
        encoder = Encoder(tokenizer, choose_template(tokenizer, template or "auto"), 1 << 30)
        trees = encode_all(loaded.records, encoder)[0]
        lengths = sorted(tree.longest_path for tree in trees)
        at = {q: lengths[min(len(lengths) - 1, int(q * len(lengths)))] for q in (0.5, 0.9, 0.99, 1.0)}
        facts["tokens"] = {"median": at[0.5], "90 %": at[0.9], "99 %": at[0.99], "longest": at[1.0]}
        facts["trained_tokens"] = sum(tree.n_trained for tree in trees)
        shared, paths = sum(t.n_tokens for t in trees), sum(t.n_path_tokens for t in trees)
        facts["saved_by_sharing"] = round(1 - shared / paths, 4)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    for key, value in facts.items():
        _console.print(f"[bold]{key}[/]: {value}")
    if tokenizer is None:
        for record in loaded.records[:limit]:
            _console.print(record)
        _console.print(
            "[dim]--model MODEL shows the trained text in green, with its tokenizer and template[/]"
        )
    for tree in trees[:limit]:
        _console.print(f"[dim]{tree.source}[/]")
        for tokens, trained in tree.paths():
            _console.print(_coloured(tokens.tolist(), trained.tolist(), tokenizer))


def _read(what: str) -> tuple[str, Any]:
    """The most telling kind that the records are."""
    reasons = []
    for kind in ("preference", "ranking", "chat", "text", "prompt"):
        assert kind in KINDS
        try:
            loaded = load_records(parse_specs(what), kind, skip_bad=True)
        except UserError as error:
            reasons.append(str(error))
            continue
        if loaded.records and sum(loaded.left_out.values()) < len(loaded.records):
            return kind, loaded
    raise UserError(reasons[-1] if reasons else f"{what}: no records of any known kind.")


def _coloured(tokens: list[int], trained: list[bool], tokenizer: Any) -> Text:
    text, start = Text(), 0
    for at in range(1, len(tokens) + 1):
        if at == len(tokens) or trained[at] != trained[start]:
            text.append(
                tokenizer.decode(tokens[start:at]), style="green" if trained[start] else "bright_black"
            )
            start = at
    return text


def merge_adapter(adapter: str, out: Path) -> None:
    """Write an adapter and its base as one plain folder.

    Raises:
        UserError: no adapter, or the output exists.
    """
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise UserError(f"{adapter}: no adapter_config.json here. Wanted a folder that PEFT has saved.")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: exists and is not empty. Choose another folder.")
    lm = load.load_with_adapter(adapter)
    tokenizer = load.load_tokenizer(adapter)
    with files.new_folder(out) as folder:
        save_model(folder, TreeModel(lm, probe(lm), read_scalar_head(adapter)), tokenizer)
    _console.print(f"written: {out}")
