"""The rarer keys of LLaMA-Factory, transformers, TRL and axolotl that Espalier has no use for, by the reason.

A table for `names.IGNORED`; none of these changes what is learned here, and each is named in one line when it is met.
"""

from __future__ import annotations

_REASONS: dict[str, str] = {
    "losses are computed in float32 anyway": "upcast_lmhead_output cast_lm_head_to_fp32",
    "only text is trained": """
        media_dir image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels
        video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate freeze_vision_tower
        freeze_multi_modal_projector freeze_language_model""",
    "tools stand where the template puts them": "tool_format",
    "an answer's thoughts are trained as they stand in the records": "enable_thinking preserve_thinking",
    "belongs to a key that is not offered": """
        galore_target galore_rank galore_update_interval galore_scale galore_proj_type
        galore_layerwise apollo_target apollo_rank badam_mode badam_start_block badam_switch_mode
        badam_switch_interval badam_update_ratio plugins ref_model_mixup_alpha ref_model_sync_steps
        f_alpha_divergence_coef sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg
        vespo_lambda_neg entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target""",
    "answers are sampled without calling tools": "max_tool_calling_iterations",
    "the reference answers in batches as the policy does": "precompute_ref_batch_size",
    "keys and values are kept while sampling, and not in training": "use_cache",
    "`gradient_checkpointing` and `offload` save memory": "activation_offloading",
    "`overlong` says what becomes of a record that is too long; nothing is cut unasked": "truncation_mode",
    "a signal always leaves a checkpoint": "enable_jit_checkpoint",
    "an adapter of pissa_init is always saved for the base as it was, as plain LoRA": "pissa_convert",
    "a loss that is no number ends a run": "loss_watchdog_threshold loss_watchdog_patience",
    "kernels of other projects, which compute the same; trains without them": """
        liger_rope liger_rms_norm liger_swiglu liger_fused_linear_cross_entropy""",
    "quantised weights lie on each process' own device, and are multiplied in the activations' type": """
        quantization_device_map bnb_4bit_compute_dtype""",
    "what is better follows from the number": "greater_is_better",
    "the optimiser's state is in the checkpoint": "ignore_data_skip restore_callback_states_from_checkpoint",
    "the model's own files say what it is": """
        model_type tokenizer_type is_llama_derived_model is_mistral_derived_model is_qwen_derived_model
        trust_remote_code_tokenizer tokenizer_use_fast tokenizer_legacy pad_token lora_task_type
        task_type""",
    "the columns are found by their names; `columns` of a data set renames them": """
        label_names length_column_name""",
    "give `dataset` entries a `split` and `eval_dataset` another": "dataset_test_split",
    "sequences are packed whole, without seeing each other": """
        packing_strategy eval_packing eval_sample_packing multipack_real_batches sample_packing_eff_est padding_free
        pad_to_multiple_of sample_packing_bin_size sample_packing_group_size""",
    "records are shuffled as a whole, by `seed`": "shuffle_merged_datasets",
    "processes read the same files": "data_shared_file_system",
    "numbers are summed over tokens of the whole step": "num_items_in_batch",
    "each stage measures its own held-out numbers": """
        eval_num_beams eval_table_size eval_max_new_tokens eval_accumulation_steps eval_delay eval_on_start
        eval_do_concat_batches eval_use_gather_object batch_eval_metrics include_for_metrics prediction_loss_only fp16_full_eval bf16_full_eval
        include_tokens_per_second do_causal_lm_eval do_bench_eval""",
    "an option of `chat`, `serve` and `evaluate`, not of training": """
        skip_special_tokens use_kv_cache infer_dtype offload_folder vllm_maxlen vllm_gpu_util
        vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size
        cache_implementation""",
    "answers are sampled with the training weights": """
        use_vllm vllm_mode vllm_server_host vllm_server_port vllm_gpu_memory_utilization vllm_tensor_parallel_size
        vllm_model_impl vllm_enable_sleep_mode vllm_server_base_url vllm_server_timeout vllm_group_port
        vllm_max_model_length vllm_importance_sampling_correction vllm_importance_sampling_mode
        vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min vllm_importance_sampling_cap
        use_transformers_continuous_batching transformers_continuous_batching_config log_multimodal
        log_unique_prompts log_completions_hub_repo use_transformers_paged ds3_gather_for_generation local_rollout_forward_batch_size log_completions
        num_completions_to_print""",
    "`espalier merge` and `espalier quantize` write models": """
        export_dir export_size export_device export_quantization_bit export_quantization_dataset
        export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id""",
    "the feed reads ahead by itself": """
        dataloader_multiprocessing_context dataloader_in_order dataloader_prefetch_factor dataloader_persistent_workers split_batches
        accelerator_config""",
    "`strategy` says how the work is shared": """
        fsdp fsdp_config fsdp_final_state_dict_type ddp_static_graph ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused
        parallelism_config tensor_parallel_size context_parallel_size""",
    "the fastest exact attention for the device is taken; `attn_implementation` chooses another": """
        xformers_attention sdp_attention eager_attention flash_attn_cross_entropy flash_attn_rms_norm
        flash_attn_fuse_qkv flash_attn_fuse_mlp use_unsloth_gc""",
    "checkpointing is never reentrant": "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
    "the computation is the same in every run with one `seed`": "full_determinism",
    "the machine's own device is used": "use_cpu no_cuda use_mps_device jit_mode_eval auto_find_batch_size",
    "`compile` turns it on": "torch_compile_backend torch_compile_mode torchdynamo",
    "nothing is pushed to a hub": """
        hub_strategy hub_private_repo hub_always_push hub_revision hub_dataset_id ms_hub_token om_hub_token
        push_dataset_to_hub hub_path""",
    "trackers take the name of the run's folder; set the tracker's own environment variables for more": """
        wandb_run_id wandb_watch wandb_log_model wandb_mode wandb_run_group mlflow_tracking_uri
        mlflow_experiment_name swanlab_workspace swanlab_mode swanlab_api_key
        swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret comet_project_name trackio_space_id
        trackio_bucket_id trackio_static_space_id""",
    "shown as numbers of the run": """
        log_level log_level_replica log_on_each_node logging_nan_inf_filter skip_memory_metrics debug strict
        save_on_each_node torch_empty_cache_steps ray_run_name""",
    "values and rewards come from their own models": "reward_model_quantization_bit ref_model_quantization_bit",
    "each batch of samples is used for `ppo_epochs` passes": "num_sample_generations",
}

ELSEWHERE: dict[str, str] = {name: reason for reason, names in _REASONS.items() for name in names.split()}
