"""TRL's DPO and GRPO on the real model, the same rows, adapters, rates and steps, judged by the same functions as ours."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from real_model import GROUP, LORA, NEW_TOKENS, PROMPTS, TARGETS, judged_pairs, options_of, rows_of


def settings(out: Path, part: str, seed: int, steps: int) -> dict[str, Any]:
    ours = options_of(out, part, seed)
    return {
        "output_dir": str(out / "runs" / f"trl-{part}-{seed}"), "max_steps": steps, "seed": seed, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True,
        "logging_steps": 4, "learning_rate": ours["learning_rate"], "warmup_steps": ours["warmup_steps"],
        "lr_scheduler_type": "constant_with_warmup", "max_grad_norm": 1.0,
    }  # fmt: skip


def adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=LORA["lora_rank"], lora_alpha=LORA["lora_alpha"], target_modules=TARGETS, task_type="CAUSAL_LM"
    )


def trained(trainer: Any) -> dict[str, float]:
    """Train once, by the CPU time of the training alone."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.process_time(), time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            cpu, wall = self.begun
            self.spent = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall}

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.spent


def trl_dpo(out: Path, seed: int, steps: int) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(out / "model"),
        args=DPOConfig(
            **settings(out, "dpo", seed, steps), per_device_train_batch_size=8, max_length=320, beta=0.1
        ),
        train_dataset=Dataset.from_list(rows_of(out, "pairs_train")),
        processing_class=AutoTokenizer.from_pretrained(out / "model"),
        peft_config=adapter(),
    )
    spent = trained(trainer)
    folder = out / "runs" / f"trl-dpo-{seed}" / "model"
    trainer.save_model(str(folder))
    found = judged_pairs(out, folder)
    right = (found["pairs_right"], found["pairs_right_stderr"])
    half = (0.5, 0.0)  # without a change no log-ratio is above another
    return {**spent, "steps": steps, "samples": steps * 8, "name": "pairs in order", "numbers": [half, right]}


def trl_grpo(out: Path, seed: int, steps: int) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from espalier.maths.numerals import same_number

    def rewards(completions: list[Any], reference: list[str], **_: Any) -> list[float]:
        texts = [turns[0]["content"] for turns in completions]
        return [float(same_number(text, wanted)) for text, wanted in zip(texts, reference, strict=True)]

    rows = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "reference": row["reference"]}
        for row in rows_of(out, "sums_train")
    ]
    trainer = GRPOTrainer(
        str(out / "model"),
        reward_funcs=rewards,
        args=GRPOConfig(
            **settings(out, "grpo", seed, steps),
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            beta=0.04,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(out / "model"),
        peft_config=adapter(),
    )
    spent = trained(trainer)
    folder = out / "runs" / f"trl-grpo-{seed}" / "model"
    trainer.save_model(str(folder))
    before, after = held_out(out, seed, folder)
    numbers = [(side["reward"], side["reward_stderr"]) for side in (before, after)]
    kl, ended = (f"{before[key]:.2f} → {after[key]:.2f}" for key in ("kl", "ended"))
    found = {"steps": steps, "samples": steps * PROMPTS * GROUP, "name": "reward", "numbers": numbers}
    return {**spent, **found, "kl": kl, "ended": ended}


def held_out(out: Path, seed: int, folder: Path) -> list[dict[str, float]]:
    """Base and adapter as Espalier's evaluations judge them: the same prompts, seeds and reference."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from espalier import rl

    own = ("stage", "resume", "save_steps", "logging_steps", "samples")
    training = rl.begin("grpo", **{k: v for k, v in options_of(out, "grpo", seed).items() if k not in own})
    before = rl.evaluate(training)
    found = set_peft_model_state_dict(training.policy.lm, load_file(folder / "adapter_model.safetensors"))
    assert not found.unexpected_keys, found.unexpected_keys
    return [before, rl.evaluate(training)]
