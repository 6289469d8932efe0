"""How a key is declared: one field of a small dataclass, with its sentence and its range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from espalier.config.stage_defaults import ByStage

Named = Literal["model", "tokenizer", "data", "file", "function", "rewards"]
"""What a path may name: a model's or an adapter's folder, a tokenizer's, data files, one file, FILE.py:FUNCTION; or a list
of rewards, whose entries name some of these."""


def option(
    default: Any,
    help: str,
    *,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    below: float | None = None,
    names: Named | None = None,
    same_result: bool = False,
) -> Any:
    """One key: its default, its sentence, and its range (``min``/``max`` inclusive, ``above``/``below`` not).

    Args:
        default: of every stage, or a `ByStage`.
        names: what a value that is a path names; its content is compared when a run goes on, not the path.
        same_result: see `Options.same_result`.
    """
    limits = {"min": min, "max": max, "above": above, "below": below}
    metadata: dict[str, Any] = {"help": help}
    metadata |= {name: limit for name, limit in limits.items() if limit is not None}
    metadata |= {"names": names} if names else {}
    metadata |= {"same_result": True} if same_result else {}
    if isinstance(default, ByStage):
        metadata |= {"by_stage": default}
        default = default.otherwise
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The base of every option class; overrides `problems` where keys depend on each other."""

    def same_result(self, key: str) -> bool:
        """Whether a run may go on, or count as done, under another value of this key."""
        return bool(self.__dataclass_fields__[key].metadata.get("same_result"))

    def problems(self) -> list[str]:
        """Whole sentences, one for each pair of keys that contradict each other, with the remedy."""
        return []
