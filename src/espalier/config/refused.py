"""Keys of other tools that change what is learned and that Espalier has not: refused, each with what to do.

A value that asks for nothing (false, null, 0, nothing, or one that means what is done anyway) passes without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from espalier.config.predecessors import CURES


@dataclass(frozen=True)
class Refused:
    """A key that cannot be taken over.

    Attributes:
        cure: what to do instead, whole sentences.
        harmless: values that mean what is done anyway.
        harmless_in: the same by stage.
        harmless_keys: keys of a mapping that change nothing.
        off: whether false and 0 mean what is done anyway.
        stages: those in which it changes anything; nothing: in all.
    """

    cure: str
    harmless: tuple[Any, ...] = ()
    harmless_in: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    harmless_keys: tuple[str, ...] = ()
    off: bool = True
    stages: tuple[str, ...] = ()

    def asks_nothing(self, value: Any, stage: str) -> bool:
        """Whether the run is the same with the key as without it."""
        if value is None or value in ("", [], {}) or (self.stages and stage not in self.stages):
            return True
        if isinstance(value, Mapping):
            return all(key in self.harmless_keys or not item for key, item in value.items())
        harmless = (*self.harmless, *self.harmless_in.get(stage, ()))
        return (self.off and not value) or any(value == one for one in harmless)


_SAMPLING = ("ppo", "grpo")

_CURES: dict[str, str] = {
    "Merge it first (espalier merge ADAPTER OUT) and name OUT as `reward_model`.": "reward_model_adapters",
    "Merge it first (espalier merge ADAPTER OUT) and name OUT as `ref_model`.": "ref_model_adapters",
    "Add them to the tokenizer's folder and name it as `tokenizer`.": """
        add_tokens add_special_tokens new_special_tokens_config init_special_tokens""",
    "Set it in the tokenizer's folder and name that as `tokenizer`.": """
        eos_token stop_token split_special_tokens""",
    "Write a system turn into the records.": "default_system",
    "Expanded blocks are not offered; use finetuning_type: freeze or lora.": "use_llama_pro",
    "Write `stage: dpo` (or another stage) instead.": "rl",
    "Name the adapter's own folder as `adapter_name_or_path`.": "adapter_folder",
    "Give `model_config` in place of `model_name_or_path`.": "train_from_scratch",
    "ReLoRA is not offered; remove it.": "relora_steps",
    "The optimiser is not offered; use optim: adamw_8bit or adafactor, which save memory too.": """
        use_galore use_apollo use_badam use_adam_mini use_muon optim_args optim_target_modules""",
    "Write lr_scheduler_type: cosine_with_min_lr and lr_scheduler_kwargs: {min_lr_rate: …}.": "cosine_min_lr_ratio",
    "The loss that it belongs to is not offered; see `pref_loss` in docs/stages.md.": """
        pref_bco_weight ld_alpha loss_weights use_weighting top_entropy_quantile use_adaptive_entropy
        off_policy_mask_threshold""",
    "The reference stays as it was at the first step; remove it.": "sync_ref_model",
    "A rollout has `rollout_prompts` prompts and is used for `grpo_epochs` passes; set these.": "steps_per_generation",
    "Write each weight beside its reward: rewards: [{type: …, weight: …}].": "reward_weights",
    "Set `advantages`; docs/stages.md has what each is.": "normalize_advantages",
    "Let the reward function itself return values within the bounds.": "reward_clip_range",
    "Templates are rendered without further arguments; write them into the tokenizer's own template.": "chat_template_kwargs",
    "Put the template into the tokenizer's folder (chat_template.jinja) and name that as `tokenizer`.": "chat_template_path",
    "Answers are sampled from the policy itself, so that its probabilities are known; remove it.": """
        vllm_structured_outputs_regex""",
    "The KL is that of `kl_estimator` and `kl_in`; set these, and remove it.": "use_bias_correction_kl",
    "No loss of the answer itself is added to KTO's; train an SFT stage before it.": "kto_ftx",
    "Attention is exact here; remove it.": "shift_attn s2_attention",
    "It is not offered; remove it.": "mixture_of_depths moe_aux_loss_coef router_aux_loss_coef",
    "Weights that are trained are kept in float32; `precision: bf16` computes in bf16. Remove it.": "pure_bf16",
    "Write its keys as keys of the run, such as trust_remote_code or temperature.": """
        model_init_kwargs ref_model_init_kwargs generation_kwargs""",
    "Records are shuffled by `seed`; to keep their order is not offered.": "disable_shuffling",
    "The last records of an epoch are trained too; remove it.": "dataloader_drop_last",
    "Remove copies once, before training: espalier clean.": "dataset_exact_deduplication",
    "Rename the columns where the data is named: dataset: {path: …, columns: {text: …}}.": "dataset_kwargs",
}

REFUSED: dict[str, Refused] = {
    **{name: Refused(cure) for cure, names in {**_CURES, **CURES}.items() for name in names.split()},
    "cpo_alpha": Refused(
        "The chosen answer's nll weighs 1 in pref_loss: cpo; `pref_ftx` adds to it.",
        harmless=(1, 1.0),
        off=False,
    ),
    "f_divergence_type": Refused("The divergence is the reverse KL; remove it.", harmless=("reverse_kl",)),
    "multi_objective_aggregation": Refused(
        "Rewards are added by their weights, and then made advantages; remove it.",
        harmless=("sum_then_normalize",),
    ),
    "train_sampling_strategy": Refused(
        "Records are shuffled by `seed`; to keep their order is not offered.",
        harmless=("random", "group_by_length", "batch_rebalance"),
    ),
    "loss_type": Refused(
        "This stage has one loss; see docs/stages.md.",
        harmless_in={"kto": ("kto",)},
        stages=("kto", "reward", "ppo", "pretrain"),
    ),
    "label_smoothing_factor": Refused(
        "It is of pretrain and sft; DPO's key is `label_smoothing`.",
        stages=("dpo", "kto", "reward", "ppo", "grpo"),
    ),
    "early_stopping_threshold": Refused("Any better number counts; remove it."),
    "ppo_buffer_size": Refused(
        "Each batch of samples is used for `ppo_epochs` passes; raise gradient_accumulation_steps instead.",
        harmless=(1,),
    ),
    "num_mini_batches": Refused(
        "Set per_device_train_batch_size and gradient_accumulation_steps instead.", harmless=(1,)
    ),
    "repetition_penalty": Refused(
        "Answers are sampled from the policy itself, so that its probabilities are known; remove it.",
        harmless=(1, 1.0),
        stages=_SAMPLING,
    ),
    "length_penalty": Refused(
        "Answers are sampled without beams; remove it.", harmless=(1, 1.0), stages=_SAMPLING
    ),
    "min_p": Refused("Answers are sampled by temperature, top_k and top_p; remove it.", stages=_SAMPLING),
    "num_beams": Refused("Answers are sampled without beams; remove it.", harmless=(1,), stages=_SAMPLING),
    "loraplus_lr_embedding": Refused(
        "Embeddings with LoRA learn at the rate of the others; remove it.", harmless=(1e-6,)
    ),
    "roles_to_train": Refused(
        "The assistant's turns are trained; give turns `weight: 0` to leave some out.",
        harmless=("assistant", ["assistant"], ["gpt"], ["assistant", "gpt"]),
    ),
    "dataset_text_field": Refused(
        "Rename the column where the data is named: dataset: {path: …, columns: {text: …}}.",
        harmless=("text",),
    ),
    "field_messages": Refused(
        "Rename the column where the data is named: dataset: {path: …, columns: {messages: …}}.",
        harmless=("messages", "conversations"),
    ),
    "dataset_train_split": Refused(
        "Name it where the data is named: dataset: {path: …, split: …}.", harmless=("train",)
    ),
    "special_tokens": Refused(
        "Set them in the tokenizer's folder and name that as `tokenizer`; a pad token is never needed.",
        harmless_keys=("pad_token",),
    ),
}
"""Name -> why and what to do."""

MUST_BE_TRUE: Mapping[str, str] = {
    "average_tokens_across_devices": "a step's loss is the mean over all its tokens",
    "do_sample": "answers are sampled in training",
    "only_optimize_lora": "with LoRA nothing else is trained; see `modules_to_save`",
    "shuffle_dataset": "records are shuffled, by `seed`",
    "assistant_only_loss": "only answers are trained; for all of a record's text set train_on_prompt: true",
    "completion_only_loss": "only answers are trained; for all of a record's text set train_on_prompt: true",
}
"""Keys whose `false` would be another run."""

REFUSED |= {
    name: Refused(
        f"It cannot be false: {why}.",
        harmless=(True,),
        off=False,
        stages=_SAMPLING if name == "do_sample" else (),
    )
    for name, why in MUST_BE_TRUE.items()
}
