"""What a run leaves behind: its config, its summary, its models."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import platform
import time
from importlib.metadata import version
from typing import Any

import torch

from espalier import config
from espalier.config.options import DtypeOptions, EngineOptions, RunOptions
from espalier.data.encode.jinja_form import as_jinja
from espalier.disk.writing import writing_to
from espalier.engine import checkpoint, files
from espalier.engine.finite import check_weights
from espalier.engine.hardware import device_name
from espalier.engine.whole import whole_model
from espalier.errors import UserError
from espalier.models.adapters.adapter import is_adapted
from espalier.models.dtypes import FLOAT32, StoredTypes, wanted_types
from espalier.models.forward import TreeModel
from espalier.models.load_adapted import plain_base
from espalier.models.saved import save_model
from espalier.runs.catalogue import STAGES
from espalier.runs.checks import with_hub_ids
from espalier.runs.earlier import weights_in
from espalier.runs.resume import checkpoints
from espalier.runs.running import Running, Start
from espalier.stages.setup import Setup


def write_config(start: Start) -> None:
    with writing_to(start.folder):
        start.folder.mkdir(parents=True, exist_ok=True)
    files.write_text(start.folder / "config.yaml", config.dump_yaml(with_hub_ids(start.options)))


def save_models(running: Running) -> None:
    """Write the stage's models, whole or not at all."""
    start, setup, live, parts = running.start, running.setup, running.live, running.parts
    whole = whole_model(live.accelerator, live.module)
    check_weights(whole, running.progress.step)
    if start.is_main:
        for name, model in {"model": parts.main, **parts.also_saved}.items():
            with files.new_folder(start.folder / name) as folder:
                own = _own(running, whole, model)
                ends = setup.stop if _talks(start) else ()
                types = _types(start, model)
                tokenizer = tokenizer_to_save(setup) if _talks(start) else setup.tokenizer
                save_model(folder, model, tokenizer, own, ends, types)
            running.saved[name] = weights_in(start.folder / name)
            running.saved_types[name] = str(types)
            if types != FLOAT32:
                start.say(
                    f"{name} is saved in {types}, each weight rounded once; save_dtype: float32 keeps all digits"
                )
    live.accelerator.wait_for_everyone()


def _types(start: Start, model: TreeModel) -> StoredTypes:
    """In which types a model is written; an adapter is float32, as it was trained."""
    if is_adapted(model.lm):
        return FLOAT32
    began = str(model.lm.name_or_path)
    return wanted_types(start.option(DtypeOptions).save_dtype, plain_base(began) if began else began)


def finish(running: Running) -> dict[str, Any]:
    """Models, then the word that the run is done, and only then the checkpoints go: a kill in between loses nothing."""
    if running.parts.settle is not None:
        running.parts.settle(running.live)
    save_models(running)
    summary = write_summary(running, "done")
    if running.start.is_main:
        checkpoint.clear_checkpoints(checkpoints(running.start.folder))
    running.live.accelerator.wait_for_everyone()
    return summary


def _talks(start: Start) -> bool:
    """Whether conversations were trained, so that their template and their end are the model's from now on."""
    return STAGES[start.stage].reads != "text"


def tokenizer_to_save(setup: Setup) -> Any:
    """The tokenizer with the template that conversations were trained with."""
    tokenizer = setup.tokenizer
    written = as_jinja(setup.template, tokenizer)
    if written is None or written == tokenizer.chat_template:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = written
    return tokenizer


def _own(running: Running, whole: dict[str, torch.Tensor], model: TreeModel) -> dict[str, torch.Tensor]:
    """The trained tensors of one model, by their names in it."""
    for name, module in running.live.inner.named_modules():
        if module is model:
            prefix = f"{name}." if name else ""
            return {k.removeprefix(prefix): t for k, t in whole.items() if k.startswith(prefix)}
    return {}


def write_summary(running: Running, status: str) -> dict[str, Any]:
    """Write ``summary.json`` (on the first rank) and return it; status: running, stopped, failed or done."""
    start, setup, parts, progress = running.start, running.setup, running.parts, running.progress
    accelerator = start.accelerator
    summary = {
        "stage": start.stage,
        "name": start.name,
        "status": status,
        "steps": progress.step,
        "total_steps": running.feed.total_steps,
        "seconds": round(progress.seconds, 2),
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.started)),
        "device": device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "strategy": running.shares.kind,
        "engine": running.shares.measured,
        "precision": start.option(EngineOptions).precision,
        "parameters": running.weights,
        "trainable_parameters": running.shares.whole.trained,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
            "espalier": version("espalier-llm"),
        },
        "seed": start.option(RunOptions).seed,
        "data": setup.hashes,
        "left_out": dict(setup.preflight.account),
        "preflight": setup.preflight.report().as_json(),
        "layout": "tree" if parts.main.traits.takes_trees else "padded",
        "layout_reason": parts.main.traits.reason,
        "tokens_in_paths": progress.path_tokens,
        "tokens_in_rows": progress.tokens,
        "idle_steps": progress.idle,
        "held_out": running.held_out,
        "best": progress.best,
        "final": {k: v for k, v in progress.last.items() if math.isfinite(v)},
        "warnings": [] if parts.watch is None else parts.watch.warnings,
        "notes": start.notes,
        "models": running.saved,
        "saved_types": running.saved_types,
        "fingerprint": start.made_from.fingerprint,
        "made_from": start.made_from.as_json(),
    }
    if start.is_main:
        files.write_json(start.folder / "summary.json", summary)
    return summary


def write_end(running: Running, status: str) -> None:
    """`write_summary` of a run that did not finish. A rank that fails alone says it for the first one, which may wait
    for the others until it is ended, or knows nothing of it yet."""
    path = running.start.folder / "summary.json"
    # A full disk must not hide what went wrong first.
    with contextlib.suppress(UserError, OSError, ValueError):
        if running.start.is_main:
            write_summary(running, status)
        elif status == "failed":
            files.write_json(path, json.loads(path.read_text("utf-8")) | {"status": status})
