"""Names that users bring along from LLaMA-Factory, transformers, TRL and axolotl, and what they mean here.

Only tables: `SYNONYMS` has the same meaning under another name, `VALUES` the same value under another name,
`SWITCHES` a boolean that is one value of another key, `IGNORED` a key that changes nothing of what is learned here, with
what is done instead (its rarer ones are in `elsewhere`). Keys that must not be passed over are in `refused`. A name
that is an option of ours is in none of them.
"""

from __future__ import annotations

from typing import Any

from espalier.config.elsewhere import ELSEWHERE
from espalier.config.predecessors import NOTHING, SAME

SYNONYMS: dict[str, str] = {
    # the model
    "model": "model_name_or_path",
    "model_path": "model_name_or_path",
    "base_model": "model_name_or_path",
    "pretrained_model_name_or_path": "model_name_or_path",
    "revision": "model_revision",
    "activation_checkpointing": "gradient_checkpointing",
    "tokenizer_name": "tokenizer",
    "tokenizer_name_or_path": "tokenizer",
    "tokenizer_path": "tokenizer",
    "adapter_path": "adapter_name_or_path",
    "lora_model_dir": "adapter_name_or_path",
    "chat_template": "template",
    "torch_dtype": "dtype",
    # which weights
    "adapter": "finetuning_type",
    "fine_tuning_type": "finetuning_type",
    "lora_r": "lora_rank",
    "lora_target_modules": "lora_target",
    "target_modules": "lora_target",
    "peft_use_rslora": "use_rslora",
    "peft_use_dora": "use_dora",
    "use_peft_rslora": "use_rslora",
    "lora_modules_to_save": "modules_to_save",
    "additional_target": "modules_to_save",
    "num_layer_trainable": "freeze_trainable_layers",
    "name_module_trainable": "freeze_trainable_modules",
    "unfrozen_parameters": "freeze_trainable_modules",
    "init_r": "adalora_init_r",
    "target_r": "adalora_target_r",
    "tinit": "adalora_tinit",
    "tfinal": "adalora_tfinal",
    "deltaT": "adalora_delta_t",
    "orth_reg_weight": "adalora_orth_reg",
    "prompt_tuning_init_text": "prompt_init_text",
    "encoder_hidden_size": "prompt_encoder_hidden_size",
    "quantization": "quantization_method",
    "quant_bits": "quantization_bit",
    "quant_method": "quantization_method",
    "quant_type": "quantization_type",
    "bnb_4bit_quant_type": "quantization_type",
    "double_quant": "double_quantization",
    "use_bnb_nested_quant": "double_quantization",
    "use_double_quant": "double_quantization",
    "bnb_4bit_use_double_quant": "double_quantization",
    # the data
    "train_on_inputs": "train_on_prompt",
    "train_file": "dataset",
    "train_files": "dataset",
    "dataset_name": "dataset",
    "datasets": "dataset",
    "data_path": "dataset",
    "validation_file": "eval_dataset",
    "eval_file": "eval_dataset",
    "test_datasets": "eval_dataset",
    "val_set_size": "val_size",
    "max_length": "cutoff_len",
    "max_seq_length": "cutoff_len",
    "max_seq_len": "cutoff_len",
    "sequence_len": "cutoff_len",
    "block_size": "cutoff_len",
    "sample_packing": "packing",
    "neat_packing": "packing",
    "max_train_samples": "max_samples",
    "dataset_prepared_path": "tokenized_path",
    "dataset_num_proc": "preprocessing_num_workers",
    "dataset_processes": "preprocessing_num_workers",
    # the training
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "gradient_clipping": "max_grad_norm",
    "clip_grad": "max_grad_norm",
    "adam_eps": "adam_epsilon",
    # the machine
    "use_gradient_checkpointing": "gradient_checkpointing",
    "deepspeed_config": "deepspeed",
    "torch_compile": "compile",
    # the run
    "output": "output_dir",
    "random_seed": "seed",
    "resume_from_checkpoint": "resume",
    # preferences and rewards
    "beta": "pref_beta",
    "dpo_beta": "pref_beta",
    "dpo_loss": "pref_loss",
    "dpo_label_smoothing": "label_smoothing",
    "rpo_alpha": "pref_ftx",
    "kto_chosen_weight": "desirable_weight",
    "kto_rejected_weight": "undesirable_weight",
    "reference_model": "ref_model",
    "ref_model_name_or_path": "ref_model",
    "precompute_ref_log_probs": "precompute_ref_logprobs",
    "reward_model_path": "reward_model",
    # reinforcement learning
    "init_kl_coef": "kl_coef",
    "kl_coefficient": "kl_coef",
    "cliprange": "clip_range",
    "cliprange_value": "clip_range_value",
    "gae_lambda": "lam",
    "num_ppo_epochs": "ppo_epochs",
    "num_generations": "group_size",
    "max_completion_length": "max_new_tokens",
    "reward_funcs": "reward_function",
    "early_stopping_steps": "early_stopping_patience",
    "wandb_project": "project",
    "swanlab_project": "project",
    "trackio_project": "project",
    "wandb_name": "run_name",
    "swanlab_run_name": "run_name",
    "noisy_embedding_alpha": "neftune_noise_alpha",
    "max_input_token": "cutoff_len",
    "prompt_template": "template",
    "response_length": "max_new_tokens",
    **SAME,
}

STAGE_SYNONYMS: dict[str, dict[str, str]] = {
    # TRL gives these names another meaning in each trainer.
    "dpo": {"loss_type": "pref_loss"},
    "sft": {"label_smoothing_factor": "label_smoothing"},
    "pretrain": {"label_smoothing_factor": "label_smoothing"},
    "grpo": {
        "beta": "kl_coef",
        "epsilon": "clip_range",
        "epsilon_high": "clip_high",
        "num_iterations": "grpo_epochs",
        "num_generations_eval": "eval_samples",
        "delta": "dual_clip",
    },
    "ppo": {
        "ppo_target": "kl_target",
        "ppo_whiten_rewards": "whiten_rewards",
        "freezing_actor_steps": "critic_first_steps",
        "sft_model_path": "model_name_or_path",
        "max_epochs": "ppo_epochs",
    },
}

SPREAD: dict[str, dict[str, tuple[str, ...]]] = {
    # One name that sets several keys of a stage, as far as they are not written themselves.
    "grpo": {"clip_range": ("clip_low", "clip_high")},
}

PRESETS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    # A value that sets several keys of a stage, as far as they are not written themselves.
    "sft": {"loss_type": {"nll": {}, "chunked_nll": {}, "dft": {"use_dft_loss": True}}},
    "grpo": {
        "algorithm": {
            "grpo": {"advantages": "grpo", "loss_average": "answer"},
            "dr_grpo": {"advantages": "dr_grpo", "loss_average": "constant", "kl_coef": 0.0},
            "rloo": {"advantages": "rloo"},
            "reinforce_pp": {"advantages": "reinforce_pp"},
            "reinforce_pp_baseline": {"advantages": "reinforce_pp_baseline"},
            "dapo": {"clip_high": 0.28, "dynamic_sampling": 10, "overlong_buffer": 0.2, "kl_coef": 0.0},
            "gspo": {
                "importance_sampling_level": "sequence",
                "loss_average": "answer",
                "clip_low": 3e-4,
                "clip_high": 4e-4,
                "kl_coef": 0.0,
            },
            "cispo": {"policy_loss": "cispo", "clip_high": 4.0, "kl_coef": 0.0},
        },
        "loss_type": {
            "grpo": {"loss_average": "answer"},
            "dapo": {"loss_average": "token"},
            "bnpo": {"loss_average": "token"},
            "dr_grpo": {"loss_average": "constant"},
        },
        "scale_rewards": {
            "group": {"advantages": "grpo"},
            "true": {"advantages": "grpo"},
            "batch": {"advantages": "batch"},
            "none": {"advantages": "dr_grpo"},
            "false": {"advantages": "dr_grpo"},
        },
    },
}

VALUES: dict[str, dict[str, Any]] = {
    "stage": {"pt": "pretrain", "rm": "reward"},
    "optim": {
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_hf": "adamw",
        "adamw_apex_fused": "adamw",
        "adamw_bnb_8bit": "adamw_8bit",
        "paged_adamw_8bit": "adamw_8bit",
    },
    "dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"},
    "mix_strategy": {"interleave_under": "first", "interleave_over": "all", "interleave_once": "first"},
    "template": {"tokenizer_default": "tokenizer"},
    "finetuning_type": {
        "qlora": "lora",
        "p_tuning_v2": "prefix",
        "prompt_tuning": "prompt",
        "prefix_tuning": "prefix",
    },
    "quantization_method": {"bitsandbytes": "bnb"},
    "report_to": {"none": []},
    "strategy": {
        "naive": "single",
        "colossalai_zero2": "zero2",
        "colossalai_gemini": "zero3",
        "0": "auto",
        "1": "zero1",
        "2": "zero2",
        "3": "zero3",
    },
    "quantization_bit": {"32": None, "16": None},
    "lora_target": {"all-linear": "all"},
    "max_steps": {"-1": None},
    "deepspeed": {"": None},
}

STAND_INS: dict[str, dict[str, tuple[Any, str]]] = {
    # Values that are not offered, what runs in their place, and how to say so.
    "optim": dict.fromkeys(
        ("paged_adamw_32bit", "paged_adamw"),
        ("adamw", "AdamW without paging takes its place: more memory, the same steps"),
    ),
}

SWITCHES: dict[str, tuple[str, Any, Any]] = {
    # name: (key of ours, its value for true, its value for false; None: as if not written)
    "bf16": ("precision", "bf16", "fp32"),
    "fp16": ("precision", "fp16", "fp32"),
    "load_in_4bit": ("quantization_bit", 4, None),
    "load_in_8bit": ("quantization_bit", 8, None),
    "use_firefly_loss": ("mask_history", False, True),
    "use_peft": ("finetuning_type", "lora", None),
    "lora_target_linear": ("lora_target", ["all"], None),
    "ppo_score_norm": ("score_normalization", "standardise", None),
    "disable_gradient_checkpointing": ("gradient_checkpointing", False, True),
}

_COMMAND = "the command or `stage` says what is done"
_MEMORY = "tokenised records are kept by what they depend on, so nothing stale is ever used"
_CPU = "the feed reads ahead by itself"
_KERNELS = "kernels of other projects, which compute the same; trains without them"
_ATTENTION = "the fastest exact attention for the device is taken; `attn_implementation` chooses another"
_EVALUATE = "`eval_steps` says how often; null evaluates before and after"
_SAVE = "`save_steps` says how often, `save_total_limit` how many are kept"
_HUB = "nothing is pushed to a hub"
_TRACK = "trackers take the name of the run's folder; set the tracker's own environment variables for more"
_GENERATE = "an option of `chat`, `serve` and `evaluate`, not of training"

IGNORED: dict[str, str] = {
    "do_train": _COMMAND,
    "do_eval": _COMMAND,
    "do_predict": _COMMAND,
    "overwrite_cache": _MEMORY,
    "cache_dir": "set HF_HOME for the hub's cache",
    "preprocessing_batch_size": _CPU,
    "dataloader_num_workers": _CPU,
    "dataloader_pin_memory": _CPU,
    "streaming": "files are read as they are needed",
    "buffer_size": "records are shuffled as a whole, by `seed`",
    "group_by_length": "packing fills the rows",
    "pad_to_sequence_len": "rows are as long as their trees",
    "remove_unused_columns": "columns that no record format knows are left alone",
    "ignore_pad_token_for_loss": "padding is never trained",
    "use_fast_tokenizer": "the fast tokenizer is always used",
    "overwrite_output_dir": "a run is continued; `resume: false` starts it again",
    "save_strategy": _SAVE,
    "saves_per_epoch": _SAVE,
    "save_only_model": "a checkpoint holds all that an exact continuation needs",
    "save_safetensors": "safetensors is the only format",
    "eval_strategy": _EVALUATE,
    "evaluation_strategy": _EVALUATE,
    "evals_per_epoch": _EVALUATE,
    "per_device_eval_batch_size": "evaluation packs as many records into a row as fit",
    "plot_loss": "the curves are in report.html",
    "logging_dir": "TensorBoard's files lie in the stage's folder",
    "logging_strategy": "`logging_steps` says how often",
    "logging_first_step": "the first step is always logged",
    "disable_tqdm": "there is one live line on a terminal and plain lines in a log",
    "include_num_input_tokens_seen": "tokens are always counted",
    "wandb_entity": _TRACK,
    "ddp_timeout": "processes wait for each other as long as torch does by default",
    "ddp_backend": "nccl on GPUs and gloo on CPUs",
    "ddp_find_unused_parameters": "every trained parameter takes part in every step",
    "local_rank": "the launcher sets it",
    "flash_attn": _ATTENTION,
    "flash_attention": _ATTENTION,
    "low_cpu_mem_usage": "weights are read straight from safetensors",
    "tf32": "`precision` sets the type of the computation",
    "upcast_layernorm": "norms run in fp32 where autocast wants it",
    "use_unsloth": _KERNELS,
    "enable_liger_kernel": _KERNELS,
    "use_liger_kernel": _KERNELS,
    "liger_kernel_config": _KERNELS,
    "data_seed": "`seed` sets every random choice",
    "push_to_hub": _HUB,
    "hub_model_id": _HUB,
    "hub_token": _HUB,
    "hf_hub_token": "set HF_TOKEN for the hub",
    "resize_vocab": "the embeddings grow by themselves when the tokenizer knows more tokens",
    "use_reentrant_gc": "checkpointing is never reentrant",
    "print_param_status": "`espalier inspect MODEL` shows the parameters",
    "eval_on_each_dataset": "held-out records are judged together",
    "compute_accuracy": "each stage measures its own held-out numbers",
    "include_effective_tokens_per_second": "tokens per second are always measured",
    "use_swanlab": "`report_to: swanlab` turns it on",
    "reward_model_type": "the files of `reward_model` say what it is",
    "predict_with_generate": _GENERATE,
    "infer_backend": _GENERATE,
    **ELSEWHERE,
    **NOTHING,
}
