"""Option names of the RLHF projects of 2023 (sunzeyeah/RLHF, llms_tool, ColossalAI Chat, DeepSpeed-Chat, simple-rlhf).

Three tables as in `names` and `refused`: the same meaning under another name, what changes nothing here, and what is
refused with its cure. Where two of the projects mean different things by one name, it is refused.
"""

from __future__ import annotations

_SAME: dict[str, str] = {
    "model_name_or_path": "actor_model_path actor_model sft_checkpoint pretrain",
    "adapter_name_or_path": "checkpoint_dir",
    "output_dir": "save_path",
    "dataset": "train_filename train_file_dir prompt_path prompt_dataset",
    "eval_dataset": "eval_filename validation_file_dir",
    "val_size": "dev_ratio",
    "max_samples": "max_datasets_size",
    "cutoff_len": "max_len max_sequence_length",
    "max_prompt_length": "max_length_prompt max_prompt_seq_len max_input_len",
    "max_new_tokens": "max_gen_length max_length_generation max_answer_seq_len",
    "rope_scaling": "use_ntk",
    "quantization_bit": "bits",
    "lora_bias": "lora_train_bias",
    "lora_rank": "lora_dim actor_lora_dim actor_lora_rank",
    "lora_target": "lora_module_name",
    "num_train_epochs": "max_epochs",
    "learning_rate": "actor_learning_rate",
    "weight_decay": "actor_weight_decay",
    "warmup_steps": "num_warmup_steps",
    "per_device_train_batch_size": "per_device_training_batch_size ppo_train_batch_size",
    "gradient_accumulation_steps": "accimulation_steps accumulation_steps",
    "gradient_checkpointing": "grad_checkpoint actor_gradient_checkpointing",
    "logging_steps": "log_interval",
    "eval_steps": "eval_interval",
    "report_to": "log_with",
    "strategy": "zero_stage actor_zero_stage",
    "reward_model": "critic_model_path critic_model reward_model_checkpoint rm_path",
    "reward_loss": "loss_fn loss_func",
    "ref_model": "reference_model_name_or_path",
    "kl_coef": "kl_coefficient",
    "lam": "lambda_",
    "reward_clip": "clip_reward_value",
    "ptx_coef": "pretrain_coef unsup_coef",
    "ptx_dataset": "pretrain_filename pretrain_dataset unsupervised_dataset_name",
}
SAME: dict[str, str] = {theirs: ours for ours, names in _SAME.items() for theirs in names.split()}

_NOTHING: dict[str, str] = {
    "the command or `stage` says what is done": "do_pred mode predict_with_generate",
    "every checkpoint holds the optimiser": "need_optim_ckpt",
    "`save_steps` says how often": "save_ckpt_interval",
    "rows are laid out without a padding side": "padding_side num_padding_at_beginning",
    "answers are sampled by the training weights": """
        enable_hybrid_engine unpin_actor_parameters release_inference_cache inference_tp_size tp_gather_partition_size""",
    "evaluation packs as many records into a row as fit": "eval_batch_size",
    "policy and reference share what is frozen": "offload_reference_model offload_reward_model",
    "policy and critic are set by the policy's own key": """
        critic_gradient_checkpointing critic_zero_stage critic_lora_dim critic_lora_rank""",
    "models are built without dropout": "disable_dropout disable_actor_dropout disable_critic_dropout",
    "the model's own files say what it is": "rm_model rm_pretrain",
    "tokenised records are kept by what they depend on": "data_output_path",
    "numbers and samples are in the run's folder": """
        print_loss print_answers print_answers_interval tensorboard_path log_dir enable_tensorboard use_wandb""",
    "losses are computed in float32 anyway": "compute_fp32_loss align_overflow",
    "the template has a real end token, which is trained": "add_eot_token eot_token end_of_conversation_token",
    "`samples` says how many held-out prompts are answered": "test_filename output_filename test_file eval_iters",
    "an option of `serve`": "gradio_port",
    "`espalier merge` and `espalier quantize` write models": "quantized_or_merged_output_dir merge_lora_weights",
    "LoRA and what is trained beside it have one precision": "enable_mixed_precision_lora",
}
NOTHING: dict[str, str] = {name: reason for reason, names in _NOTHING.items() for name in names.split()}

CURES: dict[str, str] = {
    "Name each file as `dataset`; its folder alone does not say which.": "data_dir",
    "Name the adapter as `adapter_name_or_path`, or the model as `model_name_or_path`.": "checkpoint",
    "The critic begins as `reward_model`; name that.": "critic_checkpoint reward_checkpoint",
    "One decay is for policy and critic; set `weight_decay`, and remove it.": "critic_weight_decay",
    "Adapters learn at `learning_rate`, the critic's at `critic_learning_rate`; set these.": """
        lora_learning_rate actor_lora_learning_rate critic_lora_learning_rate""",
    "Set `ema_decay`, for example ema_decay: 0.992.": "enable_ema",
    "Set `kl_target`, for example kl_target: 6.0, for a coefficient that adapts.": "adap_kl_ctrl target_kl",
    "Write its keys as keys of the run.": "ppo_config",
    "Set `freeze_ratio`, the share of the blocks that is frozen.": "num_layers_unfrozen",
    "Policy and critic are always trained in one step; remove it.": "enable_joint_optimization",
    "A prompt and its answer share `cutoff_len`; remove it.": "max_length_label",
    "Set `group_size`, the answers to a prompt.": "num_return_sequences",
    "Documents are packed into rows; `packing: false` keeps them apart.": "concat_samples",
    "Set `rollout_prompts` (prompts sampled at a time), `ppo_epochs` and `num_train_epochs`.": """
        num_episodes max_timesteps update_timesteps num_collect_steps num_update_steps ppo_batch_numbers
        generation_batches per_device_generation_batch_size ppo_steps""",
    "Name it where the data is named: dataset: {path: …, subset: …}.": "subset unsupervised_dataset_config_name",
    "Name those files in the sft stage's own `dataset`.": "sft_only_data_path",
    "Set `max_samples` or `max_steps` for a short try.": "test enable_test_mode test_stop_step",
    "Use espalier vocab to add tokens.": "expand_mode max_sentence_length",
}
"""Whole sentences, and the names that they are for."""
