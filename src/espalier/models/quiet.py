"""Transformers without its own words: what matters of them is said in ours."""

from __future__ import annotations

import logging
import os

import torch
import transformers


def quiet() -> None:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says on stdout that it found no GPU
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("transformers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
