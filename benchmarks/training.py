"""Training steps: Espalier's forward, loss and optimiser against TRL's and transformers' trainers.

python benchmarks/training.py [--task sft|reward|dpo] [--model S|M] [--records 16]

Same model, same rows, batches of 8 on both sides. What is shown besides the ratio: how much of the measured
peak of a matrix product Espalier's own steps reach.
"""

from __future__ import annotations

import argparse
import copy
from contextlib import nullcontext
from typing import Any

import torch

from _common import lengths, model_of, paired, peak_flops, report, text, tokenizer_of
from _peers import PER_STEP, Side, transformers_sft, trl_dpo, trl_reward, trl_sft
from espalier.data.encode.templates import choose_template
from espalier.data.encode.tokenise import Encoder, encode_all
from espalier.data.records import Message, Record
from espalier.data.steps.feed import DatasetFeed, Rows
from espalier.engine.optim import OptimizerSettings, optimizer_of
from espalier.maths.preferences import PREFERENCES
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.probe import probe
from espalier.stages.likelihood import NextToken
from espalier.stages.objectives.dpo import Preferences
from espalier.stages.objectives.reward import PairwiseReward
from espalier.stages.references import Reference
from espalier.trees import Tree, lay_out_tree

ROW_TOKENS = 4096


def rows_of(n: int, task: str) -> list[dict[str, Any]]:
    """Prompts of about 180 tokens and answers of about 80, log-normal; pairs share their prompt."""
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


def trees_of(task: str, rows: list[dict[str, Any]], tokenizer: Any) -> list[Tree]:
    def turns(value: Any) -> tuple[Message, ...]:
        return tuple(Message(m["role"], m["content"]) for m in value)

    records: list[Any] = [
        Record.chat(turns(r["messages"]))
        if task == "sft"
        else Record.preference(*(turns(r[k]) for k in ("prompt", "chosen", "rejected")))
        for r in rows
    ]
    encoder = Encoder(tokenizer, choose_template(tokenizer), 1024, "drop", task != "reward")
    trees, left_out = encode_all(records, encoder)
    assert not left_out
    if task == "reward":
        said = {"preference": torch.tensor([1.0, 0.0])}
        return [Tree(t.tokens, t.trained, t.children, t.ends, t.source, said) for t in trees]
    return trees


def step_flops(trees: list[Tree], lm: torch.nn.Module, task: str) -> float:
    """Forward and backward of the linear layers and of attention over all trees, in FLOP.

    Twice for a product forward and four times backward; the head on trained tokens only; under DPO the
    reference's forward besides.
    """
    config: Any = lm.config
    head = lm.get_output_embeddings().weight.numel() if task != "reward" else 0  # type: ignore[operator]
    tables = lm.get_input_embeddings().weight.numel()  # type: ignore[operator]
    body = sum(p.numel() for p in lm.parameters()) - tables
    body -= 0 if config.tie_word_embeddings else lm.get_output_embeddings().weight.numel()  # type: ignore[operator]
    tokens = sum(t.n_tokens for t in trees)
    attended = sum(float((torch.arange(1, len(ids) + 1)).sum()) for t in trees for ids, _ in t.paths())
    for t in trees:  # what the branches share is attended to once
        shared = len(t.tokens)
        attended -= (t.n_branches - 1) * shared * (shared + 1) / 2
    forward = 2 * body * tokens + 2 * head * sum(t.n_trained for t in trees)
    forward += 4 * config.num_hidden_layers * config.hidden_size * attended
    return forward * (4 if task == "dpo" else 3)


def ours(size: str, task: str, rows: list[dict[str, Any]], tokenizer: Any) -> tuple[Side, float]:
    trees = trees_of(task, rows, tokenizer)
    lm = model_of(size, tokenizer)
    head = ScalarHead(lm.config.hidden_size) if task == "reward" else None
    model = TreeModel(lm, probe(lm), head)
    frozen = copy.deepcopy(model).requires_grad_(False)
    add = Reference(model, frozen, nullcontext).step if task == "dpo" else None
    objective: Any = {
        "sft": NextToken(),
        "reward": PairwiseReward("log_sig", fresh=False),
        "dpo": Preferences(PREFERENCES["sigmoid"], {"beta": 0.1}, 0.0, fresh=False),
    }[task]
    optimizer = optimizer_of(model, OptimizerSettings("adamw", 1e-6))

    def run() -> dict[str, float]:
        feed = DatasetFeed(trees, Rows(lay_out_tree, ROW_TOKENS), trees_per_step=PER_STEP, annotate=add)
        for batches in feed.steps():
            count = sum(objective.count(batch) for batch in batches)
            for batch in batches:
                (objective.loss(model(batch, objective.want), batch)[0] / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return {"records": float(len(trees))}

    return run, step_flops(trees, lm, task)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="S", choices=["S", "M"])
    parser.add_argument("--task", default="sft", choices=["sft", "reward", "dpo"])
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    tokenizer = tokenizer_of(wanted.model)
    rows = rows_of(wanted.records, wanted.task)
    run, flops = ours(wanted.model, wanted.task, rows, tokenizer)
    sides: dict[str, Side] = {"espalier": run}
    given = (wanted.model, rows, tokenizer)
    if wanted.task == "sft":
        sides["TRL"] = trl_sft(*given)
        sides["TRL, packing"] = trl_sft(*given, packing=True)
        sides["transformers Trainer"] = transformers_sft(*given)
        sides["transformers Trainer, by length"] = transformers_sft(
            *given, train_sampling_strategy="group_by_length"
        )
    elif wanted.task == "reward":
        sides["TRL"] = trl_reward(*given)
    else:
        sides["TRL"] = trl_dpo(*given)
        # Its reference is computed before the training that is timed, and Espalier's within.
        sides["TRL, reference precomputed"] = trl_dpo(*given, precompute_ref_log_probs=True)
    found = paired(sides, wanted.rounds)
    for numbers in found.values():
        numbers["records_per_second"] = numbers["records"] / numbers["seconds"]
    found["espalier"]["share_of_peak"] = flops / found["espalier"]["cpu_seconds"] / peak_flops()
    report(f"{wanted.task} {wanted.model}", found, "records_per_second", "espalier")


if __name__ == "__main__":
    main()
