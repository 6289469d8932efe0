"""The tokens at which a model's answers end, where generation of other programs looks for them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GENERATION = "generation_config.json"


def ends_of(lm: Any) -> list[int]:
    """``eos_token_id`` of the model's generation settings, as a list."""
    config = getattr(lm, "generation_config", None)
    known = getattr(config, "eos_token_id", None)
    return [known] if isinstance(known, int) else list(known or [])


def save_ends(lm: Any, folder: Path, ends: Sequence[int]) -> None:
    """Write the model's generation settings with the tokens that its answers were trained to end with added.

    A base model's own end token is another one than that of a chat template, and whoever generates without knowing
    the template goes on behind the answer.
    """
    config = getattr(lm, "generation_config", None)
    if config is None or not ends:
        return
    settings = copy.deepcopy(config)
    both = sorted({*ends_of(lm), *ends})
    settings.eos_token_id = both[0] if len(both) == 1 else both
    settings.to_json_file(folder / GENERATION)


def take_ends(lm: Any, folder: Path) -> None:
    """What the folder of an adapter says of it, given to the model that it was merged into."""
    file = folder / GENERATION
    if file.is_file() and getattr(lm, "generation_config", None) is not None:
        lm.generation_config.eos_token_id = json.loads(file.read_text("utf-8")).get("eos_token_id")
