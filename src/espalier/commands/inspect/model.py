"""What a model folder is made of, from its files alone where they say it; the layout needs the weights and a probe."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from espalier.commands.inspect.model_facts import facts_of
from espalier.commands.inspect.modules import Node
from espalier.screen import Screen, json_text


def show_model(
    name: str,
    *,
    as_json: bool,
    with_probe: bool = True,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> None:
    """Print what the model is.

    Args:
        name: a model's or an adapter's folder.
        as_json: print JSON in place of tables.
        with_probe: load the weights and find out how the model takes trees; else only files' headers are read.
        trust_remote_code, allow_pickle: as in `models.open.open_model`.

    Raises:
        UserError: the folder cannot be read as a model.
    """
    facts, root = facts_of(
        name, with_probe=with_probe, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    if as_json:
        print(json_text({**facts, "modules": root.as_dict()}))
        return
    console = Screen()
    console.print(_tree(root))
    table = Table(show_header=False, title=name)
    for key, value in facts.items():
        for label, text in _lines(key, value):
            table.add_row(label, text)
    console.print(table)


def _tree(root: Node) -> Tree:
    made = Tree(_label(root), guide_style="dim")
    for child in root.children:
        made.add(_tree(child))
    return made


def _label(node: Node) -> Text:
    made = Text(node.name)
    if node.copies > 1:
        made.append(f" x {node.copies}", "bold")
    made.append(f" {node.kind}", "cyan")
    if node.children:
        made.append(f" {node.total:,}", "dim")
    for name, shape in node.tensors:
        made.append(f"  {name}", "dim").append(f" {shape}")
    return made


def _lines(key: str, value: Any) -> list[tuple[str, str]]:
    label = key.replace("_", " ")
    if value is None:
        return []
    if key == "memory_bytes":
        sizes = ", ".join(f"{size / 2**20:,.1f} MiB {kind}" for kind, size in value.items())
        return [("memory of the weights", sizes)]
    if key == "disk_bytes":
        return [("weights on disk", f"{value / 2**20:,.1f} MiB")]
    if key == "parts":
        return []
    if isinstance(value, dict):
        return [(label, ", ".join(f"{k} {v}" for k, v in value.items()))] if value else []
    if isinstance(value, list):
        return [(label, ", ".join(map(str, value)))] if value else []
    return [(label, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))]
