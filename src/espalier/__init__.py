"""Espalier: train, examine and serve language models on token trees.

`load_model`, `score` and `generate` use models; `run` runs a YAML file as the command does; `espalier.rl` has PPO and
GRPO piece by piece. They are loaded when they are first asked for, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Generation", "generate", "load_model", "run", "score"]


def __getattr__(name: str) -> Any:
    if name == "run":
        from espalier.runs.pipeline import run

        return run
    if name in __all__:
        from espalier import api

        return getattr(api, name)
    raise AttributeError(f"module 'espalier' has no attribute {name!r}")
