"""What would change what is learned is done or refused, and what is off passes without a word."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.config import build, canonical
from espalier.config.names import IGNORED, PRESETS, STAGE_SYNONYMS
from espalier.config.options import (
    EngineOptions,
    EvaluationOptions,
    LoraOptions,
    OptimizerOptions,
    TrackOptions,
    TrainOptions,
)
from espalier.config.refused import REFUSED
from espalier.errors import UserError
from espalier.runs.catalogue import CLASSES
from espalier.stages.likelihood import LikelihoodOptions


def built(stage: str = "sft", **keys: Any) -> Any:
    needed = (
        {"reward_model": "r"} if stage == "ppo" else {"reward_function": "brevity"} if stage == "grpo" else {}
    )
    raw = {"stage": stage, "model_name_or_path": "m", "dataset": "d", **needed, **keys}
    return build(raw, CLASSES[stage], all_classes=CLASSES)


@pytest.mark.parametrize("key", REFUSED)
def test_what_asks_for_something_is_refused_with_its_cure_and_what_asks_for_nothing_is_not(key: str) -> None:
    row = REFUSED[key]
    stage = row.stages[0] if row.stages else "sft"
    with pytest.raises(UserError, match=rf"`{key}` cannot be taken over\. [A-Z].+[.)]$") as error:
        built(stage, **{key: "something" if row.off else False})
    assert row.cure in str(error.value)
    for nothing in (None, *row.harmless, *((False, 0, "", []) if row.off else ())):
        values, notes = canonical({"stage": stage, key: nothing})
        assert values == {"stage": stage} and notes == [], nothing
    if row.stages and key not in {**STAGE_SYNONYMS["sft"], **PRESETS["sft"]}:
        assert canonical({"stage": "sft", key: "something"})[1] == []


def test_the_metric_for_the_best_model_is_a_number_with_a_better_way() -> None:
    for name in ("eval_loss", "accuracy", "yardstick", "best_of_4", "eval_kl"):
        found = built("dpo", metric_for_best_model=name)[EvaluationOptions]
        assert found.metric_for_best_model == name
    for name in ("entropy", "rougeL"):
        with pytest.raises(
            UserError, match=f"is {name}, of which nobody knows which way is better. Known: higher acc"
        ):
            built("dpo", metric_for_best_model=name)
    free, chosen = EvaluationOptions(), EvaluationOptions(load_best_model_at_end=True, eval_steps=1)
    assert free.same_result("metric_for_best_model") and not chosen.same_result("metric_for_best_model")


def test_a_pad_token_alone_changes_nothing() -> None:
    assert canonical({"special_tokens": {"pad_token": "</s>", "eos_token": None}}) == ({}, [])
    with pytest.raises(UserError, match="`special_tokens` cannot be taken over"):
        built(special_tokens={"pad_token": "</s>", "eos_token": "</s>"})


WAVED_THROUGH = [
    "model_revision",
    "modules_to_save",
    "load_best_model_at_end",
    "simpo_gamma",
    "label_smoothing_factor",
    "use_dft_loss",
    "lr_scheduler_kwargs",
    "new_special_tokens_config",
    "neftune_noise_alpha",
    "early_stopping_patience",
    "pissa_init",
    "loraplus_lr_ratio",
    "additional_target",
    "optim_args",
    "whiten_rewards",
    "mixture_of_depths",
    "shift_attn",
    "pure_bf16",
    "rpo_alpha",
]


@pytest.mark.parametrize("key", WAVED_THROUGH)
def test_no_key_that_changes_what_is_learned_is_only_noted(key: str) -> None:
    assert key not in IGNORED


def test_the_keys_of_other_tools_do_what_they_say() -> None:
    got = built(
        label_smoothing_factor=0.1, noisy_embedding_alpha=5, lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1}, eval_steps=0.1, load_best_model_at_end="true", early_stopping_steps=2,
        wandb_project="p", wandb_name="n", optim="adafactor", warmup_steps=0.05,
        finetuning_type="lora", loraplus_lr_ratio=16, bf16="auto", report_to=["trackio"],
    )  # fmt: skip
    assert got[LikelihoodOptions].label_smoothing == 0.1 and got[LikelihoodOptions].neftune_noise_alpha == 5
    assert (
        got[TrainOptions].lr_scheduler_kwargs == {"min_lr_rate": 0.1}
        and got[TrainOptions].warmup_steps == 0.05
    )
    assert (
        got[EvaluationOptions].load_best_model_at_end and got[EvaluationOptions].early_stopping_patience == 2
    )
    assert (got[TrackOptions].project, got[TrackOptions].run_name) == ("p", "n")
    assert got[OptimizerOptions].optim == "adafactor"
    assert got[LoraOptions].loraplus_lr_ratio == 16 and got[EngineOptions].precision == "auto"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lr_scheduler_kwargs": {"power": 2}}, "has `power`; linear takes nothing"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs one of min_lr and min_lr_rate"),
        ({"eval_steps": 2.5}, "`eval_steps` is 2.5; wanted a whole number of steps, or a share"),
        ({"load_best_model_at_end": True}, "`load_best_model_at_end` needs evaluations"),
        ({"early_stopping_patience": 2, "eval_steps": 0}, "`early_stopping_patience` needs evaluations"),
        ({"label_smoothing": 0.1, "use_dft_loss": True}, "both change the loss of a token"),
        ({"packing": "yes"}, "`packing` is 'yes' (a text); wanted true or false"),
    ],
)
def test_what_does_not_go_together_is_said(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        built(**keys)
    assert words in str(error.value)
