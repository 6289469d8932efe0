"""SFT and DPO steps: Espalier's forward, loss and optimiser against TRL's trainers, same model and data.

python benchmarks/training.py [--model S] [--task sft dpo] [--records 32]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from typing import Any

import torch

from _common import lengths, model_of, paired, report, text, tokenizer_of
from espalier.data.feed import DatasetFeed, Rows
from espalier.data.records import Chat, Message, Preference
from espalier.data.templates import choose_template
from espalier.data.tokenise import Encoder, encode_all
from espalier.engine.optim import adamw
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.stages.dpo import Preferences, Reference
from espalier.stages.stage import NextToken
from espalier.trees import lay_out_tree

PER_STEP = 8


def rows_of(n: int, task: str) -> list[dict[str, Any]]:
    prompts, answers = lengths(n, 140, 1, 500), lengths(2 * n, 65, 2, 300)
    made = []
    for i in range(n):
        asked = [{"role": "user", "content": text(prompts[i], 10 + i)}]
        good, bad = (
            [{"role": "assistant", "content": text(answers[2 * i + j], 1000 + 2 * i + j)}] for j in (0, 1)
        )
        made.append(
            {"messages": asked + good}
            if task == "sft"
            else {"prompt": asked, "chosen": good, "rejected": bad}
        )
    return made


def ours(size: str, task: str, rows: list[dict[str, Any]], tokenizer: Any) -> Any:
    def turns(value: Any) -> tuple[Message, ...]:
        return tuple(Message(m["role"], m["content"]) for m in value)

    records: list[Any] = [
        Chat(turns(r["messages"]))
        if task == "sft"
        else Preference(*(turns(r[k]) for k in ("prompt", "chosen", "rejected")))
        for r in rows
    ]
    trees, _ = encode_all(records, Encoder(tokenizer, choose_template(tokenizer), 1024, "drop"))
    lm = model_of(size, tokenizer)
    model = TreeModel(lm, probe(lm))
    add = Reference(model, copy.deepcopy(model).requires_grad_(False)) if task == "dpo" else None
    objective: Any = NextToken() if task == "sft" else Preferences("sigmoid", 0.1, 0.0, fresh=False)
    optimizer = adamw(model, learning_rate=1e-6, weight_decay=0.0)

    def run() -> dict[str, float]:
        feed = DatasetFeed(trees, Rows(lay_out_tree, 4096), trees_per_step=PER_STEP, annotate=add)
        for batches in feed.steps():
            count = sum(objective.count(batch) for batch in batches)
            for batch in batches:
                (objective.loss(model(batch, objective.want), batch)[0] / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return {"records": float(len(trees))}

    return run


def theirs(size: str, task: str, rows: list[dict[str, Any]], tokenizer: Any, **settings: Any) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    common = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": PER_STEP, "num_train_epochs": 1,
        "report_to": [], "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "disable_tqdm": True, "logging_strategy": "no", "learning_rate": 1e-6, "max_length": 1024, **settings,
    }  # fmt: skip
    lm, data = model_of(size, tokenizer), Dataset.from_list(rows)
    if task == "sft":
        trainer: Any = SFTTrainer(
            lm, args=SFTConfig(**common), train_dataset=data, processing_class=tokenizer
        )
    else:
        reference = None if settings.get("precompute_ref_log_probs") else copy.deepcopy(lm)
        trainer = DPOTrainer(
            lm, ref_model=reference, args=DPOConfig(**common), train_dataset=data, processing_class=tokenizer
        )
    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)

    def run() -> dict[str, float]:
        trainer.train()
        return {"records": float(len(rows))}

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="S")
    parser.add_argument("--task", nargs="+", default=["sft", "dpo"])
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    tokenizer = tokenizer_of(wanted.model)
    for task in wanted.task:
        rows = rows_of(wanted.records, task)
        sides = {"espalier": ours(wanted.model, task, rows, tokenizer)}
        sides["TRL"] = theirs(wanted.model, task, rows, tokenizer)
        if task == "sft":
            sides["TRL, grouped by length"] = theirs(
                wanted.model, task, rows, tokenizer, train_sampling_strategy="group_by_length"
            )
        found = paired(sides, wanted.rounds)
        for numbers in found.values():
            numbers["records_per_second"] = numbers["records"] / numbers["seconds"]
        report(f"{task} {wanted.model}", found, "records_per_second", "espalier")


if __name__ == "__main__":
    main()
