"""Python code that comes with a model: never run unasked, named where it is wanted, and forgotten where it was not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from espalier.disk.reading import object_or_nothing


def wants_code(error: BaseException, folder: Path) -> str | None:
    """What to say where transformers has refused a model for the code that comes with it; None for another error."""
    if "trust_remote_code" not in str(error):
        return None
    names = ", ".join(sorted(_named(folder))) or "see its config.json"
    return (
        f"{folder}: this model needs Python code that comes with it ({names}), and such code can do anything on "
        "this machine. Read it; if you trust it, set `trust_remote_code: true` (chat, evaluate and inspect: "
        "--trust-remote-code)."
    )


def _named(folder: Path) -> set[str]:
    auto_map = object_or_nothing(folder / "config.json").get("auto_map", {})
    return {str(name) for name in auto_map.values()} if isinstance(auto_map, dict) else set()


def came_with_code(thing: Any) -> bool:
    """Whether a model's or tokenizer's class is one of those that lie beside its files."""
    return type(thing).__module__.split(".")[0] == "transformers_modules"


def forget_code(config: Any) -> None:
    """Take a configuration's pointers to code that was not used; what is saved of it must not ask for that code."""
    if "auto_map" in vars(config):
        del config.auto_map
