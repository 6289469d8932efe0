"""Answers to the questions of `espalier init` -> a YAML file with a comment above each group of keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from espalier.commands.init.comments import COMMENTS, Language
from espalier.config.stage_defaults import LEARNING_RATE, stage_default
from espalier.stages.objectives import NAMES

EXAM = "evaluate"
GOALS = (*NAMES, EXAM)
HARDWARE = ("cpu", "gpu", "gpus")
NEW = "new"
"""The model of a run that begins from scratch."""

REWARDED = ("ppo", "grpo")
"""Goals that want to know what a good answer is."""

_COMPARED = ("dpo", "kto")
_SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Answers:
    """What the user wants.

    Attributes:
        goal: one of `GOALS`.
        model: a folder, a hub id, or `NEW`.
        data: files, globs or hub ids; of an exam its tasks.
        hardware: one of `HARDWARE`; gpus: all of this machine.
        language: of the comments, en or zh.
        reward: of PPO and GRPO: a reward model's folder or hub id, a rule, or FILE.py:FUNCTION.
    """

    goal: str
    model: str
    data: tuple[str, ...]
    hardware: str
    language: Language
    reward: str | None = None


def written(answers: Answers, file: str) -> str:
    """The text of the file.

    Args:
        file: its name, for the commands in its first lines.
    """
    comments = COMMENTS[answers.language]
    lines = [
        f"# {line.format(file=file)}"
        for line in (comments[f"goal {answers.goal}"], *comments["lead"].splitlines())
    ]
    for name, values in _groups(answers):
        lines += ["", *(f"# {line}" for line in comments[name].splitlines())]
        lines.append(yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=10**6).rstrip("\n"))
    return "\n".join(lines) + "\n"


def _groups(answers: Answers) -> list[tuple[str, dict[str, Any]]]:
    """Name of a comment -> the keys below it, in the order of the file."""
    goal = answers.goal
    groups: list[tuple[str, dict[str, Any]]] = [("stage", {"stage": goal, "output_dir": f"runs/{goal}"})]
    if answers.model == NEW:
        groups.append(("new model", {"model_config": _SMALL, "vocab_size": 6000}))
    else:
        groups.append(("model", {"model_name_or_path": answers.model}))
    if goal == EXAM:
        return [*groups, ("tasks", {"tasks": list(answers.data)}), ("exam limit", {"limit": 100})]
    groups.append((f"data {goal}", {"dataset": list(answers.data)}))
    groups.append(("held out", {"val_size": 0.05}))
    groups.append(("length", {"cutoff_len": 1024, "overlong": "trim"}))
    kind = _finetuning(answers)
    groups.append((kind, {"finetuning_type": kind} | ({"lora_rank": 16} if kind == "lora" else {})))
    groups += _of_goal(answers)
    rate = stage_default(LEARNING_RATE.otherwise, {"by_stage": LEARNING_RATE}, goal, kind)
    if answers.model == NEW:
        rate = 1e-3  # a small model from scratch wants a hundred times the rate of a large one that goes on
    schedule = {} if goal in REWARDED else {"lr_scheduler_type": "cosine", "warmup_ratio": 0.03}
    groups.append(("rate", {"learning_rate": rate, **schedule, "num_train_epochs": 1.0}))
    groups.append(("batch", {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}))
    engine: dict[str, Any] = {"precision": "auto"}
    if answers.hardware != "cpu":
        engine["gradient_checkpointing"] = True
    if answers.hardware == "gpus":
        engine["strategy"] = "fsdp" if kind == "full" else "ddp"
    groups.append((answers.hardware, engine))
    return [*groups, ("log", {"logging_steps": 10, "save_steps": 500})]


def _finetuning(answers: Answers) -> str:
    """LoRA where a given model must fit into little memory."""
    return (
        "full" if answers.goal == "pretrain" or answers.model == NEW or answers.hardware == "gpus" else "lora"
    )


def _of_goal(answers: Answers) -> list[tuple[str, dict[str, Any]]]:
    if answers.goal in _COMPARED:
        return [("reference", {"pref_beta": 0.1})]
    if answers.goal not in REWARDED:
        return []
    reward = str(answers.reward)
    key = "reward_function" if is_function(reward) else "reward_model"
    sampling = {"max_new_tokens": 256, "temperature": 1.0, "kl_coef": 0.05}
    group = {"group_size": 8} if answers.goal == "grpo" else {}
    return [("reward", {key: reward}), ("sampling", sampling | group)]


def is_function(reward: str) -> bool:
    """Whether a reward is a rule's name or FILE.py:FUNCTION, and no model.

    >>> [
    ...     is_function(reward)
    ...     for reward in ("brevity", "mine.py:score", "runs/reward", "./judge", "owner/judge")
    ... ]
    [True, True, False, False, False]
    """
    return ".py:" in reward or "/" not in reward
