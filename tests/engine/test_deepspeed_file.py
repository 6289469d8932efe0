"""A DeepSpeed file of one's own: completed, honoured where it agrees with the run's options, else refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from espalier.engine.deepspeed_file import RunValues, checked, read, shipped, sized, stage_of
from espalier.errors import UserError

pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")
RUN = RunValues(
    precision="fp32",
    processes=2,
    micro_batch=4,
    accumulation=8,
    max_grad_norm=1.0,
    optimizer="adamw",
    lr=5e-5,
    betas=(0.9, 0.95),
    eps=1e-8,
    weight_decay=0.01,
    schedule="constant_with_warmup",
    warmup_steps=100,
)
PREDECESSOR: dict[str, Any] = {
    "zero_optimization": {
        "stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "allgather_partitions": True,
        "allgather_bucket_size": 5e8, "overlap_comm": False, "reduce_scatter": True, "reduce_bucket_size": 5e8,
        "contiguous_gradients": True, "round_robin_gradients": True,
    },
    "optimizer": {"type": "Adam", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto",
                                                 "warmup_num_steps": "auto"}},
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 32, "loss_scale_window": 1000, "hysteresis": 2},
    "bf16": {"enabled": "auto"}, "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "steps_per_print": 1e5,
    "wall_clock_breakdown": False,
}  # fmt: skip
"""A stage-2 file as projects of 2023 have it."""


def changed(path: str, value: Any) -> dict[str, Any]:
    """The predecessor's file with one value in it changed, by its keys with dots between."""
    made = json.loads(json.dumps(PREDECESSOR))
    *outer, last = path.split(".")
    inner = made
    for key in outer:
        inner = inner.setdefault(key, {})
    inner[last] = value
    found: dict[str, Any] = made
    return found


def test_auto_is_what_the_run_says_and_what_has_no_use_is_told() -> None:
    made, notes = checked(PREDECESSOR, RUN)
    made = sized(made, hidden=64, trained=10_000)
    assert "auto" not in json.dumps(made)
    assert made["zero_optimization"] == PREDECESSOR["zero_optimization"]
    assert made["fp16"] == {"enabled": False, "loss_scale": 0, "initial_scale_power": 32, "loss_scale_window": 1000,
                            "hysteresis": 2}  # fmt: skip
    assert made["bf16"] == {"enabled": False} and checked(PREDECESSOR, replace(RUN, precision="bf16"))[0][
        "bf16"
    ] == {"enabled": True}
    assert set(made) == {"zero_optimization", "fp16", "bf16"}, "the rest is the loop's own"
    assert [note.split(" ", 2)[1] for note in notes] == ["the", "`steps_per_print`", "`wall_clock_breakdown`"]
    assert "straight line" in notes[0]


def test_what_agrees_with_the_run_is_taken() -> None:
    for path, value in (
        ("optimizer.type", "AdamW"),
        ("optimizer.params.lr", 5e-5),
        ("optimizer.params.betas", [0.9, 0.95]),
        ("scheduler.params.warmup_num_steps", 100),
        ("scheduler.params.warmup_type", "linear"),
        ("gradient_clipping", 1.0),
        ("train_batch_size", 64),
        ("gradient_accumulation_steps", 8),
        ("zero_optimization.overlap_comm", True),
    ):
        checked(changed(path, value), RUN)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "zero_optimization.stage",
            0,
            "`zero_optimization.stage` is 0, wanted 1, 2 or 3. Without ZeRO set strategy: ddp",
        ),
        ("zero_optimization", 3, "`zero_optimization.stage` is None"),
        (
            "zero_optimization.overlap_com",
            True,
            "`zero_optimization.overlap_com`: Extra inputs are not permitted",
        ),
        ("zero_optimization.reduce_bucket_size", "big", "`zero_optimization.reduce_bucket_size`"),
        ("zero_optimization.offload_optimizer.device", "nvme", "device` is 'nvme', wanted cpu or none"),
        (
            "zero_optimization.offload_param",
            {"device": "cpu"},
            "wanted stage 3, which alone cuts the weights",
        ),
        ("gradient_cliping", 1.0, "there is no `gradient_cliping`. Did you mean `gradient_clipping`?"),
        ("gradient_clipping", 0.3, 'is 0.3, wanted "auto", or 1.0 as the run\'s options say (max_grad_norm)'),
        ("train_batch_size", 32, "or 64 as the run's options say (per_device_train_batch_size x"),
        ("train_micro_batch_size_per_gpu", 2, "or 4 as the run's options say (per_device_train_batch_size)"),
        ("gradient_accumulation_steps", 1, "or 8 as the run's options say"),
        ("optimizer.type", "Lamb", "`optimizer.type` is 'Lamb', wanted AdamW"),
        ("optimizer.params.lr", 1e-3, "or 5e-05 as the run's options say (learning_rate)"),
        ("optimizer.params.adam_w_mode", False, "`optimizer.params.adam_w_mode` is False"),
        (
            "optimizer.params.freeze_step",
            3,
            "`optimizer.params.freeze_step` is 3, wanted nothing of that kind",
        ),
        ("scheduler.type", "OneCycle", "`scheduler.type` is 'OneCycle', wanted one of WarmupLR"),
        (
            "scheduler.type",
            "WarmupDecayLR",
            "wanted lr_scheduler_type: linear in the run's options, which say constant_",
        ),
        ("scheduler.params.warmup_num_steps", 10, "or 100 as the run's options say (warmup_steps)"),
        ("scheduler.params.warmup_type", "log", "or 'linear' as the run's options say"),
        (
            "fp16.enabled",
            True,
            '`fp16.enabled` is True, wanted "auto", or False as the run\'s options say (precision)',
        ),
        ("activation_checkpointing", {}, "is not possible here. Set gradient_checkpointing: true"),
        ("zero_force_ds_cpu_optimizer", True, "the optimiser is torch's"),
        ("optimizer", "Adam", "`optimizer` is 'Adam', wanted an object"),
    ],
)
def test_what_contradicts_the_run_is_refused_by_name(path: str, value: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        checked(changed(path, value), RUN)
    assert str(error.value).startswith("deepspeed: ") and said in str(error.value), error.value


def test_a_step_that_is_measured_in_tokens_has_no_batch_size() -> None:
    checked(PREDECESSOR, replace(RUN, micro_batch=None))
    with pytest.raises(UserError, match='wanted "auto", for tokens_per_step says how large a step is'):
        checked(changed("train_batch_size", 64), replace(RUN, micro_batch=None))


@pytest.mark.parametrize(
    "name", ["stage-1", "stage-1-offload", "stage-2", "stage-2-offload", "stage-3", "stage-3-offload"]
)
def test_the_files_that_come_along_are_whole(name: str) -> None:
    assert name in shipped() and len(shipped()) == 6
    settings = read(name)
    assert settings == read(f"{name}.json") and stage_of(settings) == int(name[6])
    made, notes = checked(settings, replace(RUN, precision="bf16"))
    made = sized(made, hidden=64, trained=10_000)
    section = made["zero_optimization"]
    assert (
        notes == [] and "auto" not in json.dumps(made) and section["reduce_bucket_size"] in (10_000, 64 * 64)
    )
    assert ("offload_optimizer" in section) == name.endswith("offload")
    assert ("offload_param" in section) == (name == "stage-3-offload")


def test_a_file_that_is_none_is_one_message(tmp_path: Path) -> None:
    for text, said in (
        ("{", ":1: not valid JSON"),
        ("[]", "wanted a JSON object"),
        (None, "there is no file"),
    ):
        path = tmp_path / "mine.json"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserError, match=said) as error:
            read(str(path))
        assert str(error.value).startswith("deepspeed: ")
    with pytest.raises(
        UserError, match="take one that comes with Espalier: stage-1, stage-1-offload, stage-2"
    ):
        read("stage-4")
