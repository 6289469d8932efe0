"""How answers are sampled in PPO and GRPO, and where the price of KL begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from espalier.config.options import option
from espalier.config.stage_defaults import KL_COEF
from espalier.stages.rewarding import RewardListOptions


@dataclass(frozen=True, kw_only=True)
class RolloutOptions(RewardListOptions):
    """Sampling and rewards."""

    kl_coef: float = option(KL_COEF, "The price of a nat of KL from the reference.", min=0)
    group_size: int | None = option(None, "Answers sampled to each prompt; null: 8, and 1 for PPO.", min=1)
    rollout_prompts: int | None = option(None, "Prompts sampled at a time; null: those of one step.", min=1)
    experience_batch_size: int | None = option(
        None,
        "Prompts whose answers are measured at a time on one process; null: as many as are trained at a time.",
        min=1,
        same_result=True,
    )
    generation_batch_size: int | None = option(
        None,
        "Answers sampled at a time on one process; null: up to 256 (on a GPU 512), as many as fit into half of the free "
        "memory.",
        min=1,
        same_result=True,
    )
    max_prompt_length: int | None = option(None, "Longest prompt; null: cutoff_len - max_new_tokens.", min=1)
    max_new_tokens: int = option(128, "Longest answer.", min=1)
    temperature: float = option(1.0, "Of sampling, and of the logprobs that are trained.", above=0)
    top_p: float = option(
        1.0, "Sample from the smallest set of tokens with this probability.", above=0, max=1
    )
    top_k: int = option(0, "Sample from so many likeliest tokens; 0: all.", min=0)
    missing_eos_penalty: float = option(0.0, "Taken from the reward of an answer that did not end.", min=0)
    mask_truncated_completions: bool = option(
        False,
        "Learn nothing from an answer that did not end; the others are still compared with it (DAPO, TRL).",
    )
    reward_baseline: Literal["none", "reference"] = option(
        "none", "Take the reward of the prompt's own reference answer from that of each answer."
    )
