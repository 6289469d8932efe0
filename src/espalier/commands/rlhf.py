"""The command `espalier rlhf`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from espalier.commands.written import check_free, write_new
from espalier.errors import UserError
from espalier.screen import Screen

DEPLOYMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "single_gpu": (
        "One GPU (or a CPU): adapters, and activations computed twice.",
        {"strategy": "single", "finetuning_type": "lora", "lora_rank": 16, "gradient_checkpointing": True},
    ),
    "single_node": (
        "All GPUs of one machine, each with whole models. Too large for that: strategy: zero3 (needs DeepSpeed).",
        {"strategy": "ddp", "gradient_checkpointing": True},
    ),
    "multi_node": (
        "All GPUs of several machines, each with a share of the weights. Smaller models are faster with strategy: ddp.",
        {"strategy": "zero3", "gradient_checkpointing": True},
    ),
}
"""Name -> what it means, and the keys that all steps share."""

_TORCHRUN = "torchrun --nnodes MACHINES --nproc-per-node GPUS --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m espalier.cli run"


def command(run: Callable[[str], int]) -> Callable[..., None]:
    """The command, given what runs a file and returns the exit code."""

    def rlhf(
        actor: Annotated[str, typer.Option(help="The model that learns: a local one or a hub id.")],
        reward_model: Annotated[str, typer.Option(help="The model that the reward model begins from.")],
        data: Annotated[list[str], typer.Option(help="Pairs (prompt, chosen, rejected); may be repeated.")],
        sft_data: Annotated[
            list[str] | None, typer.Option(help="Conversations for SFT; else the chosen answers.")
        ] = None,
        prompts: Annotated[
            list[str] | None, typer.Option(help="Prompts of PPO; else those of the pairs.")
        ] = None,
        deployment: Annotated[str, typer.Option(help=f"One of {', '.join(DEPLOYMENTS)}.")] = "single_gpu",
        out: Annotated[Path, typer.Option(metavar="FILE.yaml", help="What to write.")] = Path("rlhf.yaml"),
        output_dir: Annotated[str, typer.Option(help="Where the results go.")] = "runs/rlhf",
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Write and show it, and run nothing.")
        ] = False,
    ) -> None:
        """SFT, a reward model and PPO, from the names of two models: written as a pipeline, shown, and run."""
        if deployment not in DEPLOYMENTS:
            raise UserError(f"--deployment {deployment}: wanted one of {', '.join(DEPLOYMENTS)}.")
        models = {"actor": actor, "reward model": reward_model}
        text = pipeline(models, (data, sft_data or data, prompts or data), deployment, output_dir)
        if not (out.is_file() and out.read_text("utf-8") == text):  # the same command again continues
            if out.exists():
                raise UserError(
                    f"{out}: exists, and is not what this command writes. Run it as it is: espalier run {out}. Or write "
                    "another one with --out."
                )
            check_free(out)
            write_new(out, text)
        Screen(markup=False).say(text.rstrip("\n"))
        say = Screen(stderr=True).say
        say(f"written: {out}. Edit it as you like; run it again: espalier run {out}", "dim")
        if deployment == "multi_node" and "WORLD_SIZE" not in os.environ:
            say(f"on each machine: {_TORCHRUN} {out}")
        elif not dry_run:
            raise typer.Exit(run(str(out)))

    return rlhf


def pipeline(
    models: dict[str, str], data: tuple[list[str], list[str], list[str]], deployment: str, output_dir: str
) -> str:
    """The text of the file.

    Args:
        models: "actor" and "reward model", each a folder or a hub id.
        data: pairs; conversations; prompts.
        deployment: one of `DEPLOYMENTS`.
    """
    means, engine = DEPLOYMENTS[deployment]
    pairs, conversations, prompts = data
    actor, judge = models["actor"], models["reward model"]
    parts: list[tuple[str, Any]] = [
        ("Shared by all steps.", {"output_dir": output_dir, "cutoff_len": 1024, "overlong": "trim"}),
        (means, engine),
        ("The share of the data that shows whether a step has learned.", {"val_size": 0.05}),
    ]
    steps: list[tuple[str, dict[str, Any]]] = [
        (
            "The actor learns to answer.",
            {
                "name": "sft",
                "stage": "sft",
                "model_name_or_path": actor,
                "dataset": conversations,
                "num_train_epochs": 1.0,
            },
        ),
        (
            "The reward model learns which answer is better.",
            {"name": "reward", "stage": "reward", "model_name_or_path": judge, "dataset": pairs},
        ),
        (
            "The actor writes answers and learns from their scores. reward_retokenize reads them as text, so that the "
            "two models may have different tokenizers.",
            {
                "name": "ppo",
                "stage": "ppo",
                "model_name_or_path": "run:sft",
                "reward_model": "run:reward",
                "reward_retokenize": actor != judge,
                "dataset": prompts,
                "max_new_tokens": 256,
                "kl_coef": 0.05,
            },
        ),
    ]
    lines = ["# RLHF in three steps: SFT, a reward model, PPO. Look before it runs: espalier inspect FILE"]
    for comment, values in parts:
        lines += ["", f"# {comment}", _as_yaml(values)]
    lines += ["", "stages:"]
    for comment, values in steps:
        first, *rest = _as_yaml(values).splitlines()
        lines += [f"  # {comment}", f"  - {first}", *(f"    {line}" for line in rest), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _as_yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=10**6).rstrip("\n")
