"""Transformers without its own words: what matters of them is said in ours."""

# The functions of transformers' logging have no types.
# mypy: allow-untyped-calls
from __future__ import annotations

import os

import torch
import transformers

from espalier.noise import quiet_loggers


def quiet() -> None:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says on stdout that it found no GPU
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    quiet_loggers()


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
