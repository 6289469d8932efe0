"""GRPO: one update on fresh samples, Espalier's rollout and loss against TRL's trainer.

python benchmarks/grpo.py [--model S|M] [--prompts 4] [--group 8] [--new 64]

A model of random weights hardly ever says its end token, so all answers are as long as the limit on both
sides: what Espalier gains by dropping answers that have ended is not in these numbers.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch

from _common import lengths, model_of, paired, report, text, tokenizer_of
from _peers import Side, trl_grpo
from espalier.data.steps.feed import Rows
from espalier.engine.optim import OptimizerSettings, optimizer_of
from espalier.models.forward import TreeModel, Want
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling
from espalier.rollout.asked import Ask
from espalier.rollout.experience import measure, sample_trees
from espalier.stages.objectives.grpo import ADVANTAGES, GroupObjective, GRPOOptions
from espalier.stages.policy import PolicyOptions, PolicyTerms
from espalier.trees import Batch, lay_out_tree

KL_COEF = 0.05


def reward(answer: str) -> float:
    return float(len(answer) % 7)


def rows_of(prompts: int) -> list[dict[str, Any]]:
    return [
        {"prompt": [{"role": "user", "content": text(n, 10 + i)}]}
        for i, n in enumerate(lengths(prompts, 140, 1, 500))
    ]


def ours(size: str, rows: list[dict[str, Any]], tokenizer: Any, group: int, new: int) -> Side:
    asks = []
    for row in rows:
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        asks.append(Ask(ids, row["prompt"][0]["content"]))
    lm = model_of(size, tokenizer)
    model = TreeModel(lm, probe(lm))
    frozen = copy.deepcopy(model).requires_grad_(False)
    terms = PolicyTerms(PolicyOptions(kl_in="loss", kl_estimator="k3"), lambda: KL_COEF)
    objective = GroupObjective(GRPOOptions(), new, terms)
    optimizer = optimizer_of(model, OptimizerSettings("adamw", 1e-6))
    rows_in = Rows(lay_out_tree, 4096)
    sampling = Sampling(new, stop=(tokenizer.eos_token_id,))

    @torch.no_grad()
    def known(batch: Batch) -> dict[str, Any]:
        return {"old_logprobs": model(batch, Want()).logprobs, "ref_logprobs": frozen(batch, Want()).logprobs}

    def run() -> dict[str, float]:
        start = time.perf_counter()
        seeds = list(range(len(asks)))
        answered = sample_trees(lm, model.traits, asks, sampling, tokenizer.decode, copies=group, seeds=seeds)
        sampled = time.perf_counter() - start
        trees = [
            a.tree.with_extras(scores=torch.tensor([reward(text) for text in a.texts])) for a in answered
        ]
        ready = []
        for tree in measure(trees, rows_in, known):
            one = torch.zeros(tree.n_branches, dtype=torch.int64)
            ready.append(tree.with_extras(advantages=ADVANTAGES["grpo"](tree.extras["scores"], one)))
        batches = rows_in.micro_batches(ready)
        count = sum(objective.count(batch) for batch in batches)
        for batch in batches:
            (objective.loss(model(batch, objective.want), batch)[0] / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"records": float(len(asks) * group), "sampling_seconds": sampled}

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="S", choices=["S", "M"])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    tokenizer = tokenizer_of(wanted.model)
    rows = rows_of(wanted.prompts)
    sides = {
        "espalier": ours(wanted.model, rows, tokenizer, wanted.group, wanted.new),
        "TRL": trl_grpo(
            wanted.model, rows, tokenizer, reward, group=wanted.group, new=wanted.new, beta=KL_COEF
        ),
    }
    found = paired(sides, wanted.rounds)
    for numbers in found.values():
        numbers["samples_per_second"] = numbers["records"] / numbers["seconds"]
    report(f"grpo {wanted.model} {wanted.prompts}x{wanted.group}", found, "samples_per_second", "espalier")


if __name__ == "__main__":
    main()
