"""Every option has a sentence, a default that its own rules accept, and classes stay small."""

from __future__ import annotations

from dataclasses import fields

import pytest

from espalier.config import build, describe
from espalier.config.options import (
    COMMON,
    AdapterOptions,
    DataOptions,
    EngineOptions,
    ModelOptions,
    Options,
    RunOptions,
    TrainOptions,
)

CONTRACT = """stage output_dir seed model_name_or_path model_config tokenizer adapter_name_or_path dataset eval_dataset
val_size template cutoff_len overlong packing layout finetuning_type freeze_ratio lora_rank lora_alpha lora_dropout
lora_target lora_bias quantization_bit quantization_method rope_scaling learning_rate lr_scheduler_type warmup_ratio
weight_decay max_grad_norm optim num_train_epochs max_steps tokens_per_step per_device_train_batch_size
gradient_accumulation_steps precision gradient_checkpointing compile strategy offload deepspeed save_steps
save_total_limit resume logging_steps report_to"""


def test_every_key_of_the_contract_exists() -> None:
    assert set(CONTRACT.split()) <= {row.key for row in describe(COMMON)}


@pytest.mark.parametrize("kind", COMMON)
def test_a_class_is_small_and_every_key_has_a_sentence(kind: type) -> None:
    assert len(fields(kind)) <= 12
    for row in describe([kind]):
        assert row.help[0].isupper() and row.help.endswith("."), row.key


@pytest.mark.parametrize("kind", COMMON)
def test_the_defaults_pass_their_own_checks(kind: type) -> None:
    raw = {row.key: row.default for row in describe([kind])}
    assert build(raw, [_without_problems(kind)], all_classes={})


def _without_problems(kind: type) -> type:
    """The same keys without the checks between them (a model and a data set have no default)."""
    return type(kind.__name__, (kind,), {"problems": Options.problems, "__annotations__": {}})


def test_defaults_are_not_shared() -> None:
    first, second = DataOptions(), DataOptions()
    assert first.dataset == [] and first.dataset is not second.dataset


def test_a_step_has_a_size_when_none_is_given() -> None:
    assert TrainOptions().per_device_train_batch_size == 8
    assert TrainOptions(tokens_per_step=4096).per_device_train_batch_size is None


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (RunOptions(output_dir=""), "name the folder"),
        (ModelOptions(), "give `model_name_or_path`"),
        (ModelOptions(model_name_or_path="a", model_config={}), "Remove one"),
        (AdapterOptions(quantization_bit=4), "Set finetuning_type: lora"),
        (AdapterOptions(finetuning_type="freeze"), "for example 0.7"),
        (DataOptions(), "name the file"),
        (DataOptions(dataset=["a"], eval_dataset=["b"], val_size=0.1), "Remove one"),
        (TrainOptions(tokens_per_step=1, per_device_train_batch_size=1), "Remove one"),
        (TrainOptions(tokens_per_step=1, gradient_accumulation_steps=2), "Remove one"),
        (EngineOptions(deepspeed="z.json", strategy="ddp"), "Remove one"),
        (EngineOptions(offload="all", strategy="single"), "needs `strategy` fsdp"),
    ],
)
def test_contradictions_name_the_remedy(options: Options, remedy: str) -> None:
    (problem,) = options.problems()
    assert remedy in problem


@pytest.mark.parametrize(
    "options",
    [
        ModelOptions(model_name_or_path="a"),
        AdapterOptions(finetuning_type="lora", quantization_bit=4),
        DataOptions(dataset=["a"], val_size=0.1),
        TrainOptions(max_steps=5, num_train_epochs=2),
        EngineOptions(deepspeed="z.json"),
    ],
)
def test_what_fits_together_has_no_problem(options: Options) -> None:
    assert options.problems() == []
