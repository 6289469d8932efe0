"""Option names of the projects of 2023: each is ours by another name, changes nothing, or is refused with its cure."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.config import build, canonical
from espalier.config.options import LoraOptions
from espalier.errors import UserError
from espalier.runs.catalogue import CLASSES

SUNZEYEAH = [
    "model_name_or_path",
    "seed",
    "local_rank",
    "max_length",
    "do_train",
    "train_filename",
    "num_epochs",
    "learning_rate",
    "lr_scheduler_type",
    "train_batch_size",
    "warmup_ratio",
    "logging_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "deepspeed_config",
    "do_eval",
    "eval_filename",
    "eval_batch_size",
    "evaluation_strategy",
    "eval_steps",
    "eval_accumulation_steps",
    "do_pred",
    "test_filename",
    "output_filename",
    "bits",
    "weight_decay",
    "lora_rank",
    "lora_alpha",
    "lora_train_bias",
    "max_grad_norm",
    "tokenizer_path",
    "freeze_ratio",
    "max_length_generation",
    "actor_model_path",
    "critic_model_path",
    "max_gen_length",
    "pretrain_filename",
    "ppo_epochs",
    "pretrain_coef",
    "enable_hybrid_engine",
    "kl_coefficient",
    "clip_reward_value",
    "clip_range",
    "clip_range_value",
    "gamma",
    "lambda_",
    "data_dir",
    "checkpoint",
    "critic_checkpoint",
    "enable_ema",
    "critic_learning_rate",
    "num_layers_unfrozen",
    "ppo_config",
    "num_return_sequences",
    "reference_model_name_or_path",
    "max_length_prompt",
]
LLMS_TOOL = [
    "model_type",
    "model_path",
    "checkpoint_dir",
    "reward_model_checkpoint",
    "cache_dir",
    "use_fast_tokenizer",
    "use_ntk",
    "padding_side",
    "torch_dtype",
    "quantization",
    "quantization_bit",
    "quantization_type",
    "double_quantization",
    "gradio_port",
    "train_file_dir",
    "validation_file_dir",
    "test_file",
    "dev_ratio",
    "prompt_template",
    "overwrite_cache",
    "preprocessing_num_workers",
    "max_input_token",
    "ignore_pad_token_for_loss",
    "fine_tuning_type",
    "use_firefly_loss",
    "output_dir",
    "do_eval",
    "predict_with_generate",
    "fp16",
    "ddp_timeout",
    "lora_dropout",
    "lora_bias",
    "lora_target",
    "num_virtual_tokens",
    "init_kl_coef",
    "adap_kl_ctrl",
    "target_kl",
    "ppo_steps",
    "log_with",
    "expand_mode",
]
COATI = [
    "strategy",
    "pretrain",
    "dataset",
    "max_datasets_size",
    "save_path",
    "need_optim_ckpt",
    "max_epochs",
    "batch_size",
    "lora_rank",
    "log_interval",
    "lr",
    "accimulation_steps",
    "accumulation_steps",
    "max_len",
    "grad_checkpoint",
    "use_wandb",
    "log_dir",
    "subset",
    "loss_fn",
    "test",
    "prompt_path",
    "pretrain_dataset",
    "rm_model",
    "rm_path",
    "rm_pretrain",
    "num_episodes",
    "max_timesteps",
    "update_timesteps",
    "ptx_batch_size",
    "experience_batch_size",
    "kl_coef",
    "ptx_coef",
    "merge_lora_weights",
    "prompt_dataset",
    "num_collect_steps",
    "max_input_len",
]
DEEPSPEED_CHAT = [
    "data_path",
    "data_split",
    "sft_only_data_path",
    "data_output_path",
    "max_seq_len",
    "num_warmup_steps",
    "disable_dropout",
    "offload",
    "zero_stage",
    "lora_dim",
    "lora_module_name",
    "only_optimize_lora",
    "lora_learning_rate",
    "enable_tensorboard",
    "tensorboard_path",
    "print_loss",
    "num_padding_at_beginning",
    "unsupervised_dataset_name",
    "unsup_coef",
    "actor_learning_rate",
    "actor_weight_decay",
    "per_device_generation_batch_size",
    "per_device_training_batch_size",
    "generation_batches",
    "max_prompt_seq_len",
    "max_answer_seq_len",
    "actor_zero_stage",
    "actor_lora_dim",
    "enable_mixed_precision_lora",
    "align_overflow",
    "print_answers",
    "enable_test_mode",
    "add_eot_token",
    "eval_interval",
    "eval_iters",
    "offload_reward_model",
    "compute_fp32_loss",
]


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_no_name_is_unknown(stage: str) -> None:
    """Of another stage, of the wrong type, refused with a cure: all of that says what to do; `no similar name` does not."""
    for key in dict.fromkeys([*SUNZEYEAH, *LLMS_TOOL, *COATI, *DEEPSPEED_CHAT]):
        try:
            build({"stage": stage, key: "x"}, CLASSES[stage], all_classes=CLASSES)
        except UserError as error:
            assert "is not an option of" not in str(error), (key, str(error))


@pytest.mark.parametrize(
    ("stage", "theirs", "ours"),
    [
        ("sft", {"lora_rank": 0, "strategy": "colossalai_zero2", "use_firefly_loss": True},
         {"strategy": "zero2", "mask_history": False}),
        ("sft", {"pretrain": "m", "max_datasets_size": 9, "save_path": "o", "max_epochs": 2, "accimulation_steps": 8},
         {"model_name_or_path": "m", "max_samples": 9, "output_dir": "o", "num_train_epochs": 2,
          "gradient_accumulation_steps": 8}),
        ("ppo", {"max_epochs": 5, "zero_stage": 3, "clip_reward_value": 5, "lambda_": 0.9, "unsup_coef": 27.8},
         {"ppo_epochs": 5, "strategy": "zero3", "reward_clip": 5, "lam": 0.9, "ptx_coef": 27.8}),
        ("sft", {"bits": 16, "use_ntk": "linear", "train_file_dir": "d", "checkpoint_dir": "a"},
         {"quantization_bit": None, "rope_scaling": "linear", "dataset": "d", "adapter_name_or_path": "a"}),
        ("reward", {"loss_fn": "log_exp", "max_len": 512, "bits": 4},
         {"reward_loss": "log_exp", "cutoff_len": 512, "quantization_bit": 4}),
    ],
)  # fmt: skip
def test_their_values_are_ours(stage: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    values, notes = canonical({"stage": stage, **theirs})
    assert values == {"stage": stage, **ours}
    assert notes == []


def test_no_rank_is_trained_in_full_without_a_word() -> None:
    """There, a rank above 0 is LoRA; here `finetuning_type` says so, and 0 beside it is no rank."""
    raw = {"model_name_or_path": "m", "dataset": "d"}
    for theirs in ("lora_rank", "lora_dim", "actor_lora_rank"):
        with pytest.raises(
            UserError, match=r"`lora_rank`.* is set and `finetuning_type` is not.*: lora, or remove"
        ):
            build({**raw, "stage": "sft", theirs: 8}, CLASSES["sft"], all_classes=CLASSES)
        built = build(
            {**raw, "stage": "sft", theirs: 8, "finetuning_type": "lora"}, CLASSES["sft"], all_classes=CLASSES
        )
        assert built[LoraOptions].lora_rank == 8
    with pytest.raises(UserError, match="`lora_rank` is 0; wanted a number of at least 1"):
        build(
            {**raw, "stage": "sft", "lora_rank": 0, "finetuning_type": "lora"},
            CLASSES["sft"],
            all_classes=CLASSES,
        )


def test_without_firefly_s_loss_the_last_answer_alone_is_learned() -> None:
    assert canonical({"stage": "sft", "use_firefly_loss": False})[0]["mask_history"] is True
    dpo = {"stage": "dpo", "model_name_or_path": "m", "dataset": "d"}
    assert build({**dpo, "use_firefly_loss": True}, CLASSES["dpo"], all_classes=CLASSES)
    with pytest.raises(UserError, match=r"`mask_history` .* is an option of sft, not of dpo"):
        build({**dpo, "use_firefly_loss": False}, CLASSES["dpo"], all_classes=CLASSES)
