"""LLaMA-Factory's own kinds of files for five stages, and the names of TRL and axolotl, against what they mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from espalier.config import build, canonical, load_yaml, stage_of
from espalier.config.options import DataOptions, EngineOptions, LoraOptions, ModelOptions, OptimizerOptions
from espalier.errors import UserError
from espalier.runs.train import CLASSES
from espalier.stages.references import ReferenceOptions
from espalier.stages.rollout_options import RolloutOptions
from espalier.stages.shaping import ShapingOptions

COMMON = """\
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true
### method
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
### dataset
dataset_dir: data
template: llama3
cutoff_len: 1024
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
### output
output_dir: saves/llama3-8b/lora
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
STAGES = {
    "pt": ("pretrain", "dataset: c4_demo\nmix_strategy: interleave_under\npacking: true\n"),
    "sft": ("sft", "dataset: identity,alpaca_en_demo\nneat_packing: true\nenable_thinking: false\noptim: paged_adamw_8bit\n"),
    "rm": ("reward", "dataset: dpo_en_demo\n"),
    "dpo": ("dpo", "dataset: dpo_en_demo\npref_beta: 0.2\npref_loss: sigmoid\npref_ftx: 0.0\n"),
    "ppo": ("ppo", "dataset: identity\nreward_model: saves/rm\nmax_new_tokens: 512\ntop_k: 0\ntop_p: 0.9\n"
                   "ppo_target: 6.0\nppo_score_norm: false\nreward_model_type: full\n"),
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_of_each_stage_is_taken_as_it_is(tmp_path: Path, stage: str) -> None:
    ours, own = STAGES[stage]
    path = tmp_path / f"{stage}.yaml"
    path.write_text(f"stage: {stage}\n{COMMON}{own}", encoding="utf-8")
    raw = load_yaml(path)
    assert stage_of(raw, CLASSES) == ours
    built = build(raw, CLASSES[ours], all_classes=CLASSES)
    data = built[DataOptions]
    assert data.dataset == own.split("\n")[0].removeprefix("dataset: ").split(",")
    assert (data.dataset_dir, data.max_samples, data.cutoff_len, data.val_size) == ("data", 1000, 1024, 0.1)
    assert built[ModelOptions].template == "llama3" and built[LoraOptions].lora_target == [
        "q_proj",
        "v_proj",
    ]
    assert built[EngineOptions].precision == "bf16"
    notes = canonical(raw)[1]
    assert all(re.match(rf"{path}:\d+: `\w+`.* (is not used|is not offered)", note) for note in notes), notes
    unused = {"do_train", "overwrite_cache", "plot_loss", "per_device_eval_batch_size", "eval_strategy"}
    assert unused <= {note.split("`")[1] for note in notes}
    if stage == "pt":
        assert data.mix_strategy == "first"
    if stage == "sft":
        assert built[OptimizerOptions].optim == "adamw_8bit"
        assert data.packing
    if stage == "dpo":
        assert built[ReferenceOptions].pref_beta == 0.2
    if stage == "ppo":
        assert built[ShapingOptions].kl_target == 6.0 and built[RolloutOptions].reward_model == "saves/rm"


def test_a_file_that_merges_is_sent_to_merge() -> None:
    with pytest.raises(UserError, match=r"writes a model and trains none.* espalier merge saves/lora out$"):
        stage_of(
            {"model_name_or_path": "m", "adapter_name_or_path": "saves/lora", "export_dir": "out"}, CLASSES
        )


def test_every_documented_key_of_llama_factory_has_a_meaning() -> None:
    """Their argument classes (model, data, finetuning, generating), as of version 0.9."""
    names = [
        "model_name_or_path",
        "adapter_name_or_path",
        "adapter_folder",
        "cache_dir",
        "use_fast_tokenizer",
        "resize_vocab",
        "split_special_tokens",
        "add_tokens",
        "add_special_tokens",
        "model_revision",
        "low_cpu_mem_usage",
        "rope_scaling",
        "flash_attn",
        "shift_attn",
        "mixture_of_depths",
        "use_unsloth",
        "use_unsloth_gc",
        "enable_liger_kernel",
        "moe_aux_loss_coef",
        "disable_gradient_checkpointing",
        "use_reentrant_gc",
        "upcast_layernorm",
        "upcast_lmhead_output",
        "train_from_scratch",
        "infer_backend",
        "offload_folder",
        "use_kv_cache",
        "infer_dtype",
        "hf_hub_token",
        "ms_hub_token",
        "om_hub_token",
        "print_param_status",
        "trust_remote_code",
        "quantization_method",
        "quantization_bit",
        "quantization_type",
        "double_quantization",
        "quantization_device_map",
        "image_max_pixels",
        "image_min_pixels",
        "video_max_pixels",
        "video_min_pixels",
        "video_fps",
        "video_maxlen",
        "export_dir",
        "export_size",
        "template",
        "dataset",
        "eval_dataset",
        "dataset_dir",
        "media_dir",
        "cutoff_len",
        "train_on_prompt",
        "mask_history",
        "streaming",
        "buffer_size",
        "mix_strategy",
        "interleave_probs",
        "overwrite_cache",
        "preprocessing_batch_size",
        "preprocessing_num_workers",
        "max_samples",
        "eval_num_beams",
        "ignore_pad_token_for_loss",
        "val_size",
        "eval_on_each_dataset",
        "packing",
        "neat_packing",
        "tool_format",
        "default_system",
        "enable_thinking",
        "tokenized_path",
        "data_shared_file_system",
        "freeze_trainable_layers",
        "freeze_trainable_modules",
        "freeze_extra_modules",
        "additional_target",
        "lora_alpha",
        "lora_dropout",
        "lora_rank",
        "lora_target",
        "loraplus_lr_ratio",
        "loraplus_lr_embedding",
        "use_rslora",
        "use_dora",
        "pissa_init",
        "pissa_iter",
        "pissa_convert",
        "create_new_adapter",
        "pref_beta",
        "pref_ftx",
        "pref_bco_weight",
        "pref_loss",
        "dpo_label_smoothing",
        "simpo_gamma",
        "ppo_buffer_size",
        "ppo_epochs",
        "ppo_score_norm",
        "ppo_target",
        "ppo_whiten_rewards",
        "ref_model",
        "ref_model_adapters",
        "ref_model_quantization_bit",
        "reward_model",
        "reward_model_adapters",
        "reward_model_quantization_bit",
        "reward_model_type",
        "ld_alpha",
        "use_galore",
        "galore_target",
        "galore_rank",
        "galore_update_interval",
        "galore_scale",
        "use_apollo",
        "use_badam",
        "badam_mode",
        "use_swanlab",
        "swanlab_project",
        "pure_bf16",
        "stage",
        "finetuning_type",
        "use_llama_pro",
        "use_adam_mini",
        "use_muon",
        "freeze_vision_tower",
        "compute_accuracy",
        "disable_shuffling",
        "early_stopping_steps",
        "plot_loss",
        "include_effective_tokens_per_second",
        "do_sample",
        "temperature",
        "top_p",
        "top_k",
        "num_beams",
        "max_new_tokens",
        "repetition_penalty",
        "length_penalty",
        "skip_special_tokens",
        "output_dir",
        "overwrite_output_dir",
        "do_train",
        "do_eval",
        "do_predict",
        "eval_strategy",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "num_train_epochs",
        "max_steps",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_ratio",
        "warmup_steps",
        "log_level",
        "logging_dir",
        "logging_strategy",
        "logging_steps",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "seed",
        "bf16",
        "fp16",
        "tf32",
        "ddp_timeout",
        "ddp_find_unused_parameters",
        "deepspeed",
        "fsdp",
        "fsdp_config",
        "optim",
        "report_to",
        "run_name",
        "dataloader_num_workers",
        "remove_unused_columns",
        "group_by_length",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "neftune_noise_alpha",
        "include_num_input_tokens_seen",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "resume_from_checkpoint",
        "push_to_hub",
        "hub_model_id",
        "torch_compile",
        "save_only_model",
        "predict_with_generate",
    ]
    from espalier.config.names import IGNORED, STAGE_SYNONYMS, SWITCHES, SYNONYMS
    from espalier.config.refused import REFUSED

    known = {item for classes in CLASSES.values() for kind in classes for item in kind.__dataclass_fields__}
    known |= {
        *SYNONYMS,
        *SWITCHES,
        *IGNORED,
        *REFUSED,
        *(name for table in STAGE_SYNONYMS.values() for name in table),
    }
    assert [name for name in names if name not in known] == []


@pytest.mark.parametrize(
    ("raw", "ours"),
    [
        # TRL
        ({"stage": "dpo", "use_peft": True, "beta": 0.3}, {"finetuning_type": "lora", "pref_beta": 0.3}),
        ({"stage": "grpo", "epsilon": 0.1, "epsilon_high": 0.3, "num_generations": 4},
         {"clip_low": 0.1, "clip_high": 0.3, "group_size": 4}),
        ({"stage": "grpo", "epsilon": 0.1}, {"clip_low": 0.1, "clip_high": 0.1}),
        ({"stage": "grpo", "clip_range": 0.1}, {"clip_low": 0.1, "clip_high": 0.1}),
        ({"stage": "ppo", "sft_model_path": "m", "cliprange": 0.1, "response_length": 9},
         {"model_name_or_path": "m", "clip_range": 0.1, "max_new_tokens": 9}),
        # axolotl
        ({"stage": "sft", "base_model": "m", "adapter": "qlora", "lora_r": 4, "lora_target_linear": True,
          "sequence_len": 64, "micro_batch_size": 2, "num_epochs": 1, "optimizer": "adamw_bnb_8bit"},
         {"model_name_or_path": "m", "finetuning_type": "lora", "lora_rank": 4, "lora_target": ["all"],
          "cutoff_len": 64, "per_device_train_batch_size": 2, "num_train_epochs": 1, "optim": "adamw_8bit"}),
        ({"stage": "sft", "chat_template": "tokenizer_default"}, {"template": "tokenizer"}),
        ({"stage": "sft", "bf16": "auto", "target_modules": "all-linear"}, {"precision": "auto", "lora_target": "all"}),
        # llms_tool
        ({"stage": "sft", "fine_tuning_type": "p_tuning", "max_input_token": 9, "prompt_template": "ziya"},
         {"finetuning_type": "p_tuning", "cutoff_len": 9, "template": "ziya"}),
    ],
)  # fmt: skip
def test_names_of_other_tools_have_their_meaning(raw: dict[str, Any], ours: dict[str, Any]) -> None:
    assert canonical(raw)[0] == {"stage": raw["stage"], **ours}
    assert canonical(canonical(raw)[0])[0] == {"stage": raw["stage"], **ours}


@pytest.mark.parametrize("key", ["reward_model_adapters", "default_system", "add_tokens"])
def test_what_would_be_another_run_is_refused_with_a_cure(key: str) -> None:
    raw = {"stage": "sft", "model_name_or_path": "m", "dataset": "d", key: "x"}
    with pytest.raises(UserError, match=rf"`{key}` cannot be taken over\. "):
        build(raw, CLASSES["sft"], all_classes=CLASSES)


def test_axolotl_data_sets_say_what_they_mean() -> None:
    from espalier.data.read.specs import parse_specs

    entries = [
        {"path": "a.jsonl", "type": "alpaca"},
        {"path": "b.jsonl", "type": "chat_template", "field_messages": "talk"},
        {"path": "o/n", "name": "zh", "type": "completion", "split": "test"},
    ]
    a, b, c = parse_specs(entries)
    assert [spec.weight for spec in parse_specs(entries, weights=[1, 2, 3])] == [1, 2, 3]
    with pytest.raises(UserError, match="2 weights for 3 entries"):
        parse_specs(entries, weights=[1, 2])
    assert (a.format, b.format, c.format) == ("alpaca", None, "text")
    assert b.columns == {"messages": "talk"} and (c.subset, c.split) == ("zh", "test")
