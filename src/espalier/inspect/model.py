"""What a model folder is made of, from its files alone where they say it; the layout needs the weights and a probe."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from espalier.inspect.model_facts import facts_of
from espalier.inspect.modules import Node


def show_model(name: str, *, as_json: bool, with_probe: bool = True) -> None:
    """Print what the model is.

    Args:
        name: a model's or an adapter's folder.
        as_json: print JSON in place of tables.
        with_probe: load the weights and find out how the model takes trees; else only files' headers are read.

    Raises:
        UserError: the folder cannot be read as a model.
    """
    facts, root = facts_of(name, with_probe=with_probe)
    if as_json:
        print(json.dumps({**facts, "modules": root.as_dict()}, ensure_ascii=False, indent=2))
        return
    console = Console()
    console.print(_tree(root))
    table = Table(show_header=False, title=name)
    for key, value in facts.items():
        for label, said in _lines(key, value):
            table.add_row(label, said)
    console.print(table)


def _tree(root: Node) -> Tree:
    made = Tree(_label(root), guide_style="dim")
    for child in root.children:
        made.add(_tree(child))
    return made


def _label(node: Node) -> str:
    shapes = "  ".join(f"[dim]{name}[/] {shape}" for name, shape in node.tensors)
    times = f" [bold]x {node.copies}[/]" if node.copies > 1 else ""
    counted = f" [dim]{node.total:,}[/]" if node.children else ""
    return f"{node.name}{times} [cyan]{node.kind}[/]{counted}  {shapes}".rstrip()


def _lines(key: str, value: Any) -> list[tuple[str, str]]:
    label = key.replace("_", " ")
    if value is None:
        return []
    if key == "memory_bytes":
        said = ", ".join(f"{size / 2**20:,.1f} MiB {kind}" for kind, size in value.items())
        return [("memory of the weights", said)]
    if key == "disk_bytes":
        return [("weights on disk", f"{value / 2**20:,.1f} MiB")]
    if key == "parts":
        return []
    if isinstance(value, dict):
        return [(label, ", ".join(f"{k} {v}" for k, v in value.items()))] if value else []
    if isinstance(value, list):
        return [(label, ", ".join(map(str, value)))] if value else []
    return [(label, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))]
