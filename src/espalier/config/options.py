"""What a user may set for any run, as small dataclasses with a sentence under every key.

Each field is one key of the flat YAML file; :mod:`espalier.config` reads, checks and writes them. A stage's own
options (``pref_beta``, ``clip_range``, …) live beside the stage and are declared in the same way. Options stop at
the wiring: no other function takes one of these classes, they take the plain values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from espalier.config.adapter_options import AdaloraOptions as AdaloraOptions
from espalier.config.adapter_options import LoraOptions as LoraOptions
from espalier.config.adapter_options import VirtualTokenOptions as VirtualTokenOptions
from espalier.config.better import HIGHER, LOWER, better, plain_name
from espalier.config.data_options import DataOptions as DataOptions
from espalier.config.data_options import TokenizedOptions as TokenizedOptions
from espalier.config.data_options import TurnOptions as TurnOptions
from espalier.config.option import Options as Options
from espalier.config.option import option as option
from espalier.config.train_options import OptimizerOptions as OptimizerOptions
from espalier.config.train_options import TrainOptions as TrainOptions
from espalier.config.train_options import step_count_problems

FOLDER_NAME = r"\w[\w.-]*"
"""What a stage's name may be."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """The run: which stage, where it writes, how often it saves, logs and evaluates."""

    stage: str = option("", "The training stage: pretrain, sft, reward, dpo, kto, ppo or grpo; or sample.")
    name: str = option(
        "", "The stage's name in a pipeline and its folder's name; else the stage itself.", same_result=True
    )
    output_dir: str = option(
        "runs/run", "The run folder; running again with the same folder continues.", same_result=True
    )
    seed: int = option(42, "The seed of every random choice.", min=0)
    save_steps: int | float = option(
        500,
        "Write a checkpoint each so many steps (below 1: a share of all); 0: only at the end.",
        min=0,
        same_result=True,
    )
    save_total_limit: int | None = option(
        2, "Keep the newest so many checkpoints; null keeps all.", min=1, same_result=True
    )
    resume: bool | str = option(
        True,
        "Continue from the newest checkpoint of output_dir; false starts again; or a checkpoint's path.",
        same_result=True,
    )

    def problems(self) -> list[str]:
        problems = [] if self.output_dir else ["`output_dir` is empty; name the folder that the run writes."]
        if self.name and not re.fullmatch(FOLDER_NAME, self.name):
            problems.append(
                f"`name` is {self.name!r}; wanted letters, digits, `_`, `-` and `.` (it is a folder in output_dir)."
            )
        return problems + step_count_problems(self, "save_steps")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Options):
    """Held-out numbers: how often, and what follows from them."""

    eval_steps: int | float | None = option(
        None,
        "Evaluate each so many steps (below 1: a share of all), before and after; null: before and after; 0: never.",
        min=0,
        same_result=True,
    )
    load_best_model_at_end: bool = option(
        False, "Save the weights of the evaluation with the best held-out number, in place of the last ones."
    )
    metric_for_best_model: str | None = option(
        None,
        "The number by which the best evaluation is known, such as yardstick or loss; null: the stage's own held-out number.",
        same_result=True,
    )
    early_stopping_patience: int | None = option(
        None, "End after so many evaluations in a row without a better held-out number.", min=1
    )
    samples: int = option(
        4, "How many held-out prompts the model answers at each evaluation.", min=0, same_result=True
    )

    def same_result(self, key: str) -> bool:
        chooses = self.load_best_model_at_end or self.early_stopping_patience is not None
        return super().same_result(key) and not (key in ("eval_steps", "metric_for_best_model") and chooses)

    def problems(self) -> list[str]:
        problems = step_count_problems(self, "eval_steps")
        for key in ("load_best_model_at_end", "early_stopping_patience"):
            if getattr(self, key) and not self.eval_steps:
                problems.append(f"`{key}` needs evaluations; set `eval_steps`, for example eval_steps: 0.1.")
        metric = self.metric_for_best_model
        if metric is not None and better(plain_name(metric)) is None:
            problems.append(
                f"`metric_for_best_model` is {metric}, of which nobody knows which way is better. Known: higher "
                f"{', '.join(HIGHER)}, best_of_N; lower {', '.join(LOWER)}."
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class TrackOptions(Options):
    """What is written down of a run, and where else than in its folder."""

    logging_steps: int | float = option(
        10, "Log the numbers each so many steps (below 1: a share of all).", above=0, same_result=True
    )
    report_to: list[Literal["tensorboard", "wandb", "swanlab", "trackio"]] = option(
        [], "Trackers beside metrics.jsonl: tensorboard, wandb, swanlab, trackio.", same_result=True
    )
    run_name: str | None = option(
        None, "The run's name in the trackers; null: the stage's name.", same_result=True
    )
    project: str | None = option(
        None, "The trackers' project; null: their own environment variable, else espalier.", same_result=True
    )

    def problems(self) -> list[str]:
        return step_count_problems(self, "logging_steps")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """The model: an existing one, or a new one from a configuration."""

    model_name_or_path: str | None = option(
        None, "A model folder, a hub id, or run:NAME for an earlier stage of this pipeline.", names="model"
    )
    model_revision: str = option(
        "main", "Of the model on the hub: a branch, a tag or a commit; also of its tokenizer."
    )
    model_config: dict[str, Any] | str | None = option(
        None,
        "A new model from scratch: a Hugging Face configuration as a mapping or a JSON file's path.",
        names="file",
    )
    tokenizer: str | None = option(
        None,
        "A tokenizer's folder or hub id; else the model's own, or a new one trained on the data.",
        names="tokenizer",
    )
    adapter_name_or_path: list[str] = option(
        [],
        "PEFT adapters: all but the last are merged into the model in their order, the last is trained on.",
        names="model",
    )
    rope_scaling: dict[str, Any] | str | None = option(
        None,
        "Longer context: linear, dynamic, yarn, llama3 (rotary), ntk_alibi; with a factor as yarn:4; or a mapping.",
    )
    template: str | None = option(None, "The chat template's name; else the tokenizer's own.")
    layout: Literal["auto", "tree", "padded"] = option(
        "auto", "How trees become rows; auto takes tree when the model passes the probe, else padded."
    )
    attn_implementation: Literal[
        "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"
    ] = option(
        "auto",
        "The attention code: auto is Espalier's own; one of transformers' takes trees by a dense mask or runs padded.",
    )
    trust_remote_code: bool = option(
        False, "Run Python code that comes with the model; only for models you trust."
    )
    allow_pickle: bool = option(
        False,
        "Read weights in .bin files, through torch's safe loader, where there are no safetensors.",
        same_result=True,
    )

    def problems(self) -> list[str]:
        if self.model_name_or_path is None and self.model_config is None:
            return [
                "No model: give `model_name_or_path` (a model) or `model_config` (a new one from scratch)."
            ]
        if self.model_name_or_path is not None and self.model_config is not None:
            return [
                "`model_name_or_path` and `model_config` contradict each other: the first loads a model, the second "
                "makes a new one from scratch. Remove one."
            ]
        return []


@dataclass(frozen=True, kw_only=True)
class DtypeOptions(Options):
    """The types of weights, in memory and in saved files."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "The type in memory of linear layers that are not trained; auto: the base's own where precision is 16 bits.",
    )
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "The type of a saved model's weights; auto: its base's, float32 for a new model."
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions(Options):
    """The new tokenizer of a new model; unused when a tokenizer is loaded."""

    vocab_size: int | None = option(
        None,
        "How many tokens a new byte-level BPE tokenizer may have; else model_config's vocab_size.",
        min=257,
    )


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(Options):
    """Which weights are trained, and how the others are stored."""

    finetuning_type: Literal["full", "freeze", "lora", "adalora", "ia3", "prompt", "p_tuning", "prefix"] = (
        option("full", "Train all weights (full), some of them (freeze), or an adapter.")
    )
    create_new_adapter: bool = option(
        False, "Merge every adapter of adapter_name_or_path and begin a new one on top."
    )
    freeze_ratio: float = option(
        0.0,
        "This share of the blocks, from the lowest and rounded up, is not trained (0.7: the lowest 70 %).",
        min=0,
        max=1,
    )
    freeze_embeddings: bool = option(
        True,
        "With freeze_ratio: the embeddings are not trained either, so nothing below the first trained block keeps "
        "activations; false trains them.",
    )
    freeze_trainable_layers: int | None = option(
        None, "With freeze: train only so many of the highest blocks, or of the lowest when negative."
    )
    freeze_trainable_modules: list[str] = option(
        [], "With freeze: train only these parts, by name or pattern; of those blocks, where they are given."
    )
    freeze_extra_modules: list[str] = option(
        [], "With freeze: train these parts outside of the blocks too, such as norm or embed_tokens."
    )
    quantization_bit: Literal[2, 3, 4, 8] | None = option(None, "Store the frozen weights in so many bits.")
    quantization_method: str = option("bnb", "How the frozen weights are quantised: bnb, cpm or torchao.")
    quantization_type: Literal["nf4", "fp4"] = option("nf4", "The levels of bnb's 4 bits.")
    double_quantization: bool = option(True, "With bnb's 4 bits: quantise the scales too.")

    def problems(self) -> list[str]:
        problems = []
        if self.quantization_bit is not None and self.finetuning_type in ("full", "freeze"):
            problems.append(
                f"`quantization_bit` {self.quantization_bit} and `finetuning_type` {self.finetuning_type} contradict "
                "each other: quantised weights cannot be trained. Set finetuning_type: lora, or remove quantization_bit."
            )
        named = {
            "freeze_trainable_layers": self.freeze_trainable_layers is not None,
            "freeze_trainable_modules": bool(self.freeze_trainable_modules),
            "freeze_extra_modules": bool(self.freeze_extra_modules),
        }
        asked = [name for name, given in named.items() if given]
        if self.finetuning_type == "freeze" and self.freeze_ratio == 0 and not asked:
            problems.append(
                "`finetuning_type` freeze needs `freeze_ratio` above 0, for example 0.7, or freeze_trainable_layers, "
                "or freeze_trainable_modules."
            )
        if asked and self.finetuning_type != "freeze":
            problems.append(
                f"`{asked[0]}` belongs to finetuning_type: freeze, not to {self.finetuning_type}."
            )
        if self.freeze_ratio and self.finetuning_type not in ("full", "freeze"):
            problems.append(
                f"`freeze_ratio` {self.freeze_ratio:g} and `finetuning_type` {self.finetuning_type}: all blocks are "
                "frozen below an adapter. Remove freeze_ratio."
            )
        if not self.freeze_embeddings and not self.freeze_ratio:
            problems.append("`freeze_embeddings: false` is for freeze_ratio. Set that, or remove it.")
        if asked and self.finetuning_type == "freeze" and self.freeze_ratio:
            problems.append(f"`freeze_ratio` and `{asked[0]}` both say what is trained. Remove one.")
        if self.freeze_trainable_layers == 0:
            problems.append("`freeze_trainable_layers` 0 trains nothing; give a number of blocks.")
        return problems


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """How the same computation is carried out on this machine."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "The type of the matrix products; auto is bf16 where the processor has instructions for it."
    )
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: slower, less memory.", same_result=True
    )
    compile: bool = option(False, "Compile the model with torch.compile.")
    strategy: Literal["auto", "single", "ddp", "fsdp", "zero1", "zero2", "zero3"] = option(
        "auto",
        "How several processes share the work; auto: single for one process, else ddp.",
        same_result=True,
    )
    num_processes: int = option(
        0,
        "Processes on this machine; 0: one a GPU, one without GPUs. Several machines: see docs.",
        min=0,
        same_result=True,
    )
    offload: Literal["none", "optimizer", "all"] = option(
        "none", "What lives in the machine's memory, not the GPU's.", same_result=True
    )
    deepspeed: dict[str, Any] | str | None = option(
        None,
        "A DeepSpeed configuration of one's own (a JSON file), or one that comes along by its name, such as stage-2-offload.",
        names="file",
    )

    def problems(self) -> list[str]:
        problems = []
        if self.deepspeed is not None and self.strategy in ("single", "ddp", "fsdp"):
            problems.append(f"`deepspeed` and `strategy` {self.strategy} contradict each other. Remove one.")
        if self.offload != "none" and self.strategy in ("single", "ddp"):
            problems.append(
                f"`offload` {self.offload} needs `strategy` fsdp, zero2 or zero3, not {self.strategy}. Change one."
            )
        return problems


COMMON: tuple[type[Options], ...] = (
    RunOptions,
    EvaluationOptions,
    TrackOptions,
    ModelOptions,
    DtypeOptions,
    TokenizerOptions,
    AdapterOptions,
    LoraOptions,
    AdaloraOptions,
    VirtualTokenOptions,
    DataOptions,
    TokenizedOptions,
    TrainOptions,
    OptimizerOptions,
    EngineOptions,
)
"""The classes that every training stage takes, in the order of help pages and of config.yaml."""
