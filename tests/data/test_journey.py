"""How many files a chat passes through between its line on the disk and the batch that the loop gets."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import espalier
from espalier import config
from espalier.config.options import COMMON
from espalier.data.encode.templates import choose_template
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.stages.datasets import Datasets
from tests.data.store.helpers import CHATS

ROOMS = tuple(str(Path(espalier.__file__).parent / room) + "/" for room in ("data", "stages", "trees"))
MARK = "☃"
TINY = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 256}  # fmt: skip


def carries(value: Any, ids: set[int], depth: int = 5) -> bool:
    """Whether a value holds the marked text, or a token that only this text has (stored ones are -1 - token)."""
    if isinstance(value, (str, bytes)):
        return MARK in value if isinstance(value, str) else MARK.encode() in value
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = value.numpy() if isinstance(value, torch.Tensor) else value
        return array.dtype.kind == "i" and bool(np.isin(array, [*ids, *(-1 - one for one in ids)]).any())
    if isinstance(value, int):
        return value in ids
    if not depth:
        return False
    if isinstance(value, Mapping):
        return any(carries(part, ids, depth - 1) for part in value.values())
    if isinstance(value, (list, tuple)):
        return any(carries(part, ids, depth - 1) for part in value)
    if is_dataclass(value) and type(value).__module__.startswith("espalier."):
        return any(carries(getattr(value, f.name, None), ids, depth - 1) for f in fields(value))
    return False


def test_a_chat_passes_few_files(tmp_path: Path) -> None:
    """A file is counted when one of its functions is given the chat, or gives it: as text, turns, tokens, tree or batch."""
    rows = [{**CHATS[0], "output": f"{MARK} und"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps(rows[0], ensure_ascii=False) + "\n", "utf-8")
    tokenizer = load.train_tokenizer([str(row) for row in CHATS] + [MARK * 40] * 8, 400)
    ids = set(tokenizer.encode(MARK)) - {token for row in CHATS for token in tokenizer.encode(str(row))}
    assert ids and min(ids) > 128, "no place, length or count in this test may look like the token"
    raw = {"stage": "sft", "dataset": str(tmp_path / "chats.jsonl"), "cutoff_len": 128, "model_config": TINY}
    data = Datasets(
        config.build(raw, COMMON, all_classes={"sft": COMMON}),
        reads="chat",
        rank=0,
        world=1,
        device=torch.device("cpu"),
        say=print,
        tokenizer=tokenizer,
        kept=tmp_path / "kept",
    )
    data.template = choose_template(tokenizer)
    lm = load.new_lm(TINY, len(tokenizer), {})
    model = TreeModel(lm, probe(lm), None)
    files: dict[str, str] = {}

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        path = frame.f_code.co_filename
        if event not in ("call", "return") or not path.startswith(ROOMS) or path in files:
            return
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        values = [argument] if event == "return" else [frame.f_locals.get(name) for name in names]
        if any(carries(value, ids) for value in values):
            files[path] = code.co_qualname

    sys.setprofile(watch)
    try:
        records, _ = data.records("chat")
        [batch] = next(iter(data.dataset_feed(model, data.trees(records)).steps()))
    finally:
        sys.setprofile(None)
    assert carries(batch, ids)
    journey = sorted(f"{Path(path).parent.name}/{Path(path).name}" for path in files)
    assert len(journey) == 17, "\n".join(journey)
