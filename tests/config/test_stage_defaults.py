"""Defaults that depend on the stage and on what is trained."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest

from espalier import config
from espalier.config.options import AdapterOptions, TrainOptions
from espalier.config.stage_defaults import ADAPTER_RATES, EPOCHS, LEARNING_RATE
from espalier.runs.catalogue import CLASSES


def built(**values: Any) -> TrainOptions:
    values |= {"model_name_or_path": "base", "dataset": ["train.jsonl"]}
    if values["stage"] in ("ppo", "grpo"):
        values["reward_function"] = "brevity"
    return config.build(values, CLASSES[values["stage"]], all_classes=CLASSES)[TrainOptions]


@pytest.mark.parametrize("stage", CLASSES)
def test_every_stage_has_a_rate_and_a_length_of_its_own(stage: str) -> None:
    assert built(stage=stage).learning_rate == LEARNING_RATE.stages[stage].value
    assert built(stage=stage).num_train_epochs == EPOCHS.stages[stage].value
    assert built(stage=stage, learning_rate=0.5).learning_rate == 0.5
    assert built(stage=stage, learning_rate=None).learning_rate == LEARNING_RATE.stages[stage].value


def test_the_stages_that_hold_on_to_a_reference_learn_slowest() -> None:
    assert (
        max(LEARNING_RATE.stages[s].value for s in ("dpo", "kto", "ppo", "grpo"))
        < LEARNING_RATE.stages["reward"].value
    )
    assert (
        LEARNING_RATE.stages["reward"].value
        < LEARNING_RATE.stages["sft"].value
        < LEARNING_RATE.stages["pretrain"].value
    )


@pytest.mark.parametrize("kind", get_args(get_type_hints(AdapterOptions)["finetuning_type"]))
def test_adapters_learn_faster_than_whole_models(kind: str) -> None:
    extra = {"freeze_ratio": 0.5} if kind == "freeze" else {}
    whole = kind in ("full", "freeze")
    assert (kind in ADAPTER_RATES) is not whole
    factor = 1 if whole else ADAPTER_RATES[kind].value
    for stage in ("sft", "dpo"):
        options = built(stage=stage, finetuning_type=kind, **extra)
        assert options.learning_rate == pytest.approx(LEARNING_RATE.stages[stage].value * factor)
        assert options.num_train_epochs == EPOCHS.stages[stage].value


@pytest.mark.parametrize(
    ("stage", "name"), [("sft", "SFT"), ("dpo", "DPO"), ("kto", "KTO"), ("grpo", "GRPO")]
)
def test_what_is_said_to_be_trl_s_is_trl_s(stage: str, name: str) -> None:
    trl = pytest.importorskip("trl")
    defaults = {item.name: item.default for item in fields(getattr(trl, f"{name}Config"))}
    for key, table in (("learning_rate", LEARNING_RATE), ("num_train_epochs", EPOCHS)):
        if table.stages[stage].source.startswith("TRL"):
            assert table.stages[stage].value == defaults[key]
    assert LEARNING_RATE.stages[stage].source.startswith("TRL")
