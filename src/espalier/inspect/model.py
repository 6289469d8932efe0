"""A model's parts, parameters and layout."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from espalier.models import adapters, load
from espalier.models.probe import probe
from espalier.models.saved import read_scalar_head


def show_model(name: str, *, as_json: bool) -> None:
    """Load it, probe it and print what it is made of."""
    console = Console()
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
    console.print(table)
    console.print(f"layout: {traits.reason}")
    console.print(
        f"memory of the weights: {4 * total / 2**20:,.0f} MiB in float32, {2 * total / 2**20:,.0f} in 16 bits"
    )
    console.print(f"linear layers (lora_target): {', '.join(adapters.linear_names(lm))}")
