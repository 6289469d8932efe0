"""The other side: TRL's trainers and transformers' Trainer on the same rows, as functions that train once.

All in float32 without gradient checkpointing, in the process whose memory is kept (see `paired`), so that
what is compared is the work and not the settings.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import Any

from _common import model_of

Side = Callable[[], dict[str, float]]
PER_STEP = 8


def _common(**settings: Any) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": PER_STEP, "num_train_epochs": 1,
        "report_to": [], "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "disable_tqdm": True, "logging_strategy": "no", "learning_rate": 1e-6, **settings,
    }  # fmt: skip


def _quiet(trainer: Any, records: int) -> Side:
    """Train once a call, and time the training alone."""
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            import time

            self.start = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            import time

            self.seconds = time.perf_counter() - self.start

    clock = Clock()
    trainer.add_callback(clock)

    def run() -> dict[str, float]:
        trainer.train()
        return {"records": float(records), "seconds": clock.seconds}

    return run


def trl_sft(size: str, rows: list[dict[str, Any]], tokenizer: Any, **settings: Any) -> Side:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model_of(size, tokenizer),
        args=SFTConfig(**_common(max_length=1024, **settings)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return _quiet(trainer, len(rows))


def transformers_sft(size: str, rows: list[dict[str, Any]], tokenizer: Any, **settings: Any) -> Side:
    """transformers' Trainer on ids and labels, padded to the longest of each batch."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    made = []
    for row in rows:
        asked, whole = (
            tokenizer.apply_chat_template(turns, add_generation_prompt=asks, return_dict=False)
            for turns, asks in ((row["messages"][:1], True), (row["messages"], False))
        )
        whole = whole[:1024]
        made.append({"input_ids": whole, "labels": [-100] * len(asked) + whole[len(asked) :]})
    trainer = Trainer(
        model_of(size, tokenizer),
        args=TrainingArguments(**_common(**settings)),
        train_dataset=Dataset.from_list(made),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    return _quiet(trainer, len(rows))


def trl_dpo(size: str, rows: list[dict[str, Any]], tokenizer: Any, **settings: Any) -> Side:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    lm = model_of(size, tokenizer)
    trainer = DPOTrainer(
        lm,
        ref_model=None if settings.get("precompute_ref_log_probs") else copy.deepcopy(lm),
        args=DPOConfig(**_common(max_length=1024, **settings)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return _quiet(trainer, len(rows))


def trl_reward(size: str, rows: list[dict[str, Any]], tokenizer: Any, **settings: Any) -> Side:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    config = model_of(size, tokenizer).config
    config.num_labels = 1
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_config(config),
        args=RewardConfig(**_common(max_length=1024, **settings)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return _quiet(trainer, len(rows))


def trl_grpo(
    size: str,
    rows: list[dict[str, Any]],
    tokenizer: Any,
    reward: Callable[[str], float],
    *,
    group: int,
    new: int,
    beta: float,
) -> Side:
    """One update on fresh samples of all prompts."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    folder = tempfile.mkdtemp()  # the reference is loaded by its path
    model_of(size, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def rewards(completions: list[Any], **_: Any) -> list[float]:
        return [reward(turns[0]["content"]) for turns in completions]

    samples = len(rows) * group
    trainer = GRPOTrainer(
        folder,
        reward_funcs=rewards,
        args=GRPOConfig(
            **_common(per_device_train_batch_size=samples, max_steps=1, beta=beta),
            num_generations=group,
            max_completion_length=new,
            seed=0,
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        processing_class=tokenizer,
    )
    return _quiet(trainer, samples)
