"""PPO by what its models take: whole models, adapters over one base each, over one base for all, frozen lower blocks.

Each mode is a run of its own in a process of its own; a step's time is that of the longer of two runs less the shorter,
divided by the steps between them, and what is reported are medians of rounds in turn. The weights are counted (each once
however many models hold it), and so is what gradients and AdamW's means take beside them.

    python benchmarks/ppo_memory.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import machine, model_of, text, tokenizer_of

LORA = {"finetuning_type": "lora", "lora_rank": 16}
FROZEN = {"finetuning_type": "freeze", "freeze_ratio": 0.7}
MODES: dict[str, dict[str, Any]] = {
    "whole models": {"reward_model": "reward"},
    "frozen 70 %": {"reward_model": "frozen-reward", **FROZEN},
    "LoRA, separate": {"reward_model": "adapter", **LORA},
    "LoRA, shared": {"reward_model": "adapter", **LORA, "model_memory": "shared"},
}
SHORT, LONG = 2, 8


def prepare(size: str, folder: Path) -> None:
    """A base model, prompts, pairs, and reward models: whole, with frozen blocks, and as an adapter."""
    from espalier.config import RawConfig
    from espalier.models.forward import TreeModel
    from espalier.models.probe import probe
    from espalier.models.saved import save_model
    from espalier.runs.train import run_stage

    tokenizer = tokenizer_of(size)
    lm = model_of(size, tokenizer)
    (folder / "base").mkdir()
    save_model(folder / "base", TreeModel(lm, probe(lm)), tokenizer)
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as prompts:
        for i in range(64):
            prompts.write(json.dumps({"prompt": text(40, i)}) + "\n")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as pairs:
        for i in range(16):
            row = {"prompt": text(40, i), "chosen": text(20, 100 + i), "rejected": text(20, 200 + i)}
            pairs.write(json.dumps(row) + "\n")
    for name, extra in {"reward": {}, "frozen-reward": FROZEN, "adapter": LORA}.items():
        options = {
            "stage": "reward", "output_dir": str(folder / name), "model_name_or_path": str(folder / "base"),
            "dataset": str(folder / "pairs.jsonl"), "max_steps": 2, "cutoff_len": 512, "eval_steps": 0, **extra,
        }  # fmt: skip
        run_stage(RawConfig(options))


def one_run(folder: Path, mode: str, steps: int) -> dict[str, float]:
    """Seconds and weights of one run, in this process."""
    from espalier.config import RawConfig
    from espalier.models import sharing
    from espalier.runs.train import run_stage
    from espalier.stages import model_memory

    held: dict[str, float] = {}
    share = model_memory.share_frozen

    def counted(*models: Any) -> int:
        saved = share(*models)
        present = [model for model in models if model is not None]
        trained = {id(p): p for model in present for p in model.parameters() if p.requires_grad}
        held["weights"] = sharing.held_bytes(*present)
        held["with_optimizer"] = held["weights"] + 3 * sum(4 * p.numel() for p in trained.values())
        return saved

    model_memory.share_frozen = counted
    extra = MODES[mode] | {"reward_model": str(folder / MODES[mode]["reward_model"] / "reward" / "model")}
    with tempfile.TemporaryDirectory() as out:
        options = {
            "stage": "ppo", "output_dir": out, "model_name_or_path": str(folder / "base"), "precision": "fp32",
            "dataset": str(folder / "prompts.jsonl"), "max_steps": steps, "max_new_tokens": 48, "cutoff_len": 512,
            "per_device_train_batch_size": 4, "group_size": 4, "ppo_epochs": 2, "eval_steps": 0, "samples": 0, **extra,
        }  # fmt: skip
        began = time.perf_counter()
        run_stage(RawConfig(options))
        return {"seconds": time.perf_counter() - began, **held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=("S", "M"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("FOLDER", "MODE", "STEPS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        folder, mode, steps = chosen.one
        print(json.dumps(one_run(Path(folder), mode, int(steps))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(chosen.size, folder)
        rows: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
        for _ in range(chosen.rounds):
            for mode in MODES:
                short, long = (apart(folder, mode, steps) for steps in (SHORT, LONG))
                rows[mode].append(long | {"step": (long["seconds"] - short["seconds"]) / (LONG - SHORT)})
    show(chosen.size, {m: {k: statistics.median(r[k] for r in rows[m]) for k in rows[m][0]} for m in MODES})


def apart(folder: Path, mode: str, steps: int) -> dict[str, float]:
    words = [sys.executable, __file__, "--one", str(folder), mode, str(steps)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    numbers: dict[str, float] = json.loads(said.strip().splitlines()[-1])
    return numbers


def show(size: str, medians: dict[str, dict[str, float]]) -> None:
    first = medians["whole models"]
    print("mode                weights   with optimiser   step   of whole models: weights, all, step")
    for mode, row in medians.items():
        ratios = " ".join(f"{row[k] / first[k]:.2f}" for k in ("weights", "with_optimizer", "step"))
        print(
            f"{mode:18} {row['weights'] / 2**20:7.1f} MiB {row['with_optimizer'] / 2**20:7.1f} MiB {row['step']:7.3f} s   {ratios}"
        )
    file = Path(__file__).parent / "results" / f"ppo-memory-{size}.json"
    file.parent.mkdir(exist_ok=True)
    kept = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "medians": medians}
    file.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
