"""Every argument of transformers' and TRL's configurations is sorted: the same, a synonym, changes nothing, refused."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import transformers

from espalier.config import build, canonical
from espalier.config.build import known_keys
from espalier.config.names import IGNORED, PRESETS, SPREAD, STAGE_SYNONYMS, SWITCHES, SYNONYMS
from espalier.config.refused import REFUSED
from espalier.errors import UserError
from espalier.runs.catalogue import CLASSES

OF_TRL = {"SFTConfig": "sft", "RewardConfig": "reward", "DPOConfig": "dpo", "KTOConfig": "kto", "GRPOConfig": "grpo",
          "RLOOConfig": "grpo"}  # fmt: skip
NAMES = ("TrainingArguments", *OF_TRL)

LEARNS = (
    "alpha|beta|coef|clip|decay|delta|diverg|dropout|entropy|epoch|epsilon|gamma|gradient|kl|label|lambda|learning|length|"
    "loss|lr_|mask|max_steps|momentum|noise|norm|optim|packing|penal|prompt|quantile|ratio|ref_model|reward|sampling|scale|"
    "seed|shuffle|smooth|template|temperature|top_|truncat|warmup|weight"
)
"""What stands in the name of a key that changes what is learned."""

OF_NOTHING = {
    # belongs to a key that is itself refused
    "f_alpha_divergence_coef", "ref_model_mixup_alpha", "ref_model_sync_steps", "entropy_coef_min", "entropy_coef_max",
    "entropy_coef_delta", "entropy_target", "sapo_temperature_neg", "sapo_temperature_pos", "vespo_lambda_pos",
    "vespo_lambda_neg",
    # of an engine that samples apart from the weights that are trained; here both are the same
    "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min", "vllm_importance_sampling_cap", "vllm_max_model_length",
    # how records lie in rows, which here see only themselves; which columns there are
    "packing_strategy", "eval_packing", "label_names", "length_column_name",
    # numbers, memory and files of a run
    "prediction_loss_only", "gradient_checkpointing_kwargs", "log_unique_prompts", "ds3_gather_for_generation",
    # one seed; whole records; dropout is nowhere; no answer calls tools
    "data_seed", "truncation_mode", "disable_dropout", "max_tool_calling_iterations",
}  # fmt: skip
"""Keys with such a name that change nothing here, by hand."""


@cache
def arguments(name: str) -> tuple[str, ...]:
    where = transformers if name == "TrainingArguments" else pytest.importorskip("trl")
    return tuple(item.name for item in fields(getattr(where, name)) if item.init)


def sorted_as(key: str, stage: str) -> str | None:
    if key in known_keys(CLASSES[stage]):
        return "same"
    if key in SYNONYMS or key in SWITCHES:
        return "synonym"
    if any(key in table.get(stage, {}) for table in (STAGE_SYNONYMS, SPREAD, PRESETS)):
        return "synonym"
    if key in IGNORED:
        return "nothing"
    if key in REFUSED or any(key in known_keys(classes) for classes in CLASSES.values()):
        return "refused"
    return None


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_sorted(name: str) -> None:
    found = {key: sorted_as(key, OF_TRL.get(name, "sft")) for key in arguments(name)}
    assert len(found) > 100 and [key for key, kind in found.items() if kind is None] == []
    assert {"same", "synonym", "nothing", "refused"} <= set(found.values())


@pytest.mark.parametrize("name", NAMES)
def test_no_argument_that_changes_what_is_learned_is_said_to_change_nothing(name: str) -> None:
    stage = OF_TRL.get(name, "sft")
    waved = {k for k in arguments(name) if sorted_as(k, stage) == "nothing" and re.search(LEARNS, k)}
    assert waved <= OF_NOTHING, waved - OF_NOTHING


def test_what_changes_nothing_is_met_somewhere() -> None:
    assert {key for name in NAMES for key in arguments(name)} >= OF_NOTHING


@pytest.mark.parametrize("name", OF_TRL)
def test_a_synonym_is_a_key_of_its_stage_and_what_is_refused_says_what_to_do(name: str) -> None:
    stage = OF_TRL[name]
    for key in arguments(name):
        kind = sorted_as(key, stage)
        if kind == "synonym" and key not in PRESETS.get(stage, {}):
            made = canonical({"stage": stage, key: True})[0]
            foreign = set(made) - {"stage", *known_keys(CLASSES[stage])}
            assert not foreign or _refusal(stage, key), (key, foreign)
        elif kind == "refused" and not (key in REFUSED and REFUSED[key].asks_nothing("something", stage)):
            assert re.search(r"[A-Z`].+[.)?]$", _refusal(stage, key), re.MULTILINE), key


def _refusal(stage: str, key: str) -> str:
    needed: dict[str, Any] = {"model_name_or_path": "m", "dataset": "d"}
    needed |= {"reward_function": "brevity"} if stage == "grpo" else {}
    value = False if key in REFUSED and not REFUSED[key].off else "something"
    with pytest.raises(UserError) as error:
        build({"stage": stage, **needed, key: value}, CLASSES[stage], all_classes=CLASSES)
    assert f"`{key}`" in str(error.value)
    return str(error.value)


def test_losses_of_sft_by_trl_s_names() -> None:
    assert canonical({"stage": "sft", "loss_type": "dft"})[0] == {"stage": "sft", "use_dft_loss": True}
    assert canonical({"stage": "sft", "loss_type": "nll"})[0] == {"stage": "sft"}
    assert canonical({"stage": "kto", "loss_type": "kto"})[0] == {"stage": "kto"}
    with pytest.raises(UserError, match=r"loss_type.* is none of nll, chunked_nll, dft"):
        canonical({"stage": "sft", "loss_type": "focal"})
    both = {"stage": "sft", "activation_checkpointing": None, "gradient_checkpointing": True}
    assert canonical(both)[0] == {"stage": "sft", "gradient_checkpointing": True}
    assert canonical(dict(reversed(both.items())))[0]["gradient_checkpointing"] is True
