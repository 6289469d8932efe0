"""From a stage's options and data to what memory and time are reckoned from (`espalier.plan`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from espalier.commands.inspect.model_facts import skeleton, stored_bytes
from espalier.commands.inspect.trained import bare_model, trained_parameters
from espalier.config.option_set import OptionSet
from espalier.config.options import (
    AdapterOptions,
    DataOptions,
    EngineOptions,
    ModelOptions,
    OptimizerOptions,
    TrainOptions,
)
from espalier.engine import deepspeed_file, strategy, zero
from espalier.engine.precision import choose_precision
from espalier.errors import UserError
from espalier.models.adapters.counts import Count
from espalier.models.heads import CHUNK_ELEMENTS
from espalier.plan.activations import activations
from espalier.plan.devices import Device
from espalier.plan.forecast import Load
from espalier.plan.memory import Method, ModelSizes
from espalier.rollout.rewards.table import ModelSettings
from espalier.runs.catalogue import STAGES
from espalier.stages.model_memory import MemoryOptions
from espalier.stages.objectives.grpo import GRPOOptions
from espalier.stages.rollout_options import RolloutOptions
from espalier.stages.setup import Setup

MOMENTS = {"adamw": 8, "adamw_8bit": 2, "adafactor": 0, "sgd": 0}
"""Bytes of an optimiser's state a trained parameter; Adafactor's are a row and a column of each matrix."""


@dataclass(frozen=True)
class Sizes:
    """A stage's data in numbers.

    Attributes:
        trees: of an epoch.
        tokens: of all of them, answers that are sampled at their longest.
        longest: tokens of the largest.
        group, new_tokens: answers sampled to a prompt, and how long at most; 0 where none are.
    """

    trees: int
    tokens: int
    longest: int
    group: int = 0
    new_tokens: int = 0


def load_of(
    name: str, kind: str, setup: Setup, options: OptionSet, start: ModelOptions, device: Device, gpus: int
) -> Load:
    """A stage as memory and time see it.

    Args:
        setup: of the stage, its data read.
        start: where its model begins (`commands.inspect.config.start_of`).
        gpus: devices.

    Raises:
        UserError: the model cannot be built from what is known of it, or there are no data.
    """
    stage, train, engine = STAGES[kind], options[TrainOptions], options[EngineOptions]
    processes = gpus if not device.cpu else max(1, engine.num_processes)
    rolling = options[RolloutOptions] if stage.samples else None
    own = deepspeed_file.read(engine.deepspeed) if isinstance(engine.deepspeed, str) else engine.deepspeed
    sizes = _sizes(setup, kind, rolling)
    step = _step(sizes, train, options[DataOptions].cutoff_len, processes)
    lm = bare_model(setup, start)
    method = Method(
        strategy=strategy.decided(
            engine.strategy, processes, None if own is None else deepspeed_file.stage_of(own)
        ),
        processes=processes,
        offload=engine.offload if own is None else _offload(own),
        rows=step.batch,
        length=max(1, math.ceil(step.row / step.batch)),
        bits=_bits(engine.precision, device),
        moments=MOMENTS[options[OptimizerOptions].optim],
        checkpointing=engine.gradient_checkpointing,
        logits=min(step.row, max(1, CHUNK_ELEMENTS // _words(lm))),
        bucket=_bucket(own, lm),
    )
    model = _sizes_of(lm, trained_parameters(stage, setup, options, start), method, options, start)
    answers = round(step.trees / processes) * sizes.group
    cut = method.strategy in strategy.SHARDED and answers
    return Load(
        name,
        {"policy": model, "critic": _critic(model, method, rolling)} if kind == "ppo" else {"model": model},
        method,
        step.tokens,
        step.micro_batches,
        train.max_steps or max(1, math.ceil(train.num_train_epochs * sizes.trees / step.trees)),
        _frozen(kind, options, model),
        _cache(lm, answers, sizes.longest, sizes.new_tokens, method.bits) if answers else 0,
        answers,
        min(answers, (rolling.generation_batch_size or 256) if rolling else 0),
        sizes.new_tokens,
        4 * model.parameters if cut else 0,
    )


@dataclass(frozen=True)
class StepShare:
    """What one process does in an optimiser step.

    Attributes:
        batch: trees of a micro-batch.
        row: tokens of the largest one.
        tokens: of all of them.
        trees: of a step on all processes.
    """

    batch: int
    row: int
    tokens: int
    micro_batches: int
    trees: float


def _step(sizes: Sizes, train: TrainOptions, cutoff_len: int, processes: int) -> StepShare:
    tree = sizes.tokens / sizes.trees
    if train.tokens_per_step:
        own = train.tokens_per_step // processes
        row = max(cutoff_len, min(own, 8192))
        return StepShare(
            max(1, round(row / tree)), row, own, max(1, own // row), max(1.0, train.tokens_per_step / tree)
        )
    batch, micro = train.per_device_train_batch_size or 8, train.gradient_accumulation_steps
    row = round((batch - 1) * tree + sizes.longest)
    return StepShare(batch, row, round(micro * batch * tree), micro, float(batch * micro * processes))


def _sizes(setup: Setup, kind: str, rolling: RolloutOptions | None) -> Sizes:
    part = next(iter(setup.preflight.report().parts.values()), None)
    if part is None or (not part.trees and not part.records):
        raise UserError("there are no data to plan with.")
    trees, longest = part.trees or part.records, int(part.lengths.get("longest", 0))
    if rolling is None:
        return Sizes(trees, part.tokens, longest)
    group = rolling.group_size or (1 if kind == "ppo" else 8)
    answers = group * rolling.max_new_tokens
    return Sizes(trees, part.tokens + trees * answers, longest + answers, group, rolling.max_new_tokens)


def _bits(precision: str, device: Device) -> int:
    if device.cpu:
        import torch

        precision = choose_precision(precision, torch.device("cpu"))
    return 32 if precision == "fp32" else 16


def _offload(own: Mapping[str, Any]) -> str:
    """What a DeepSpeed file keeps in the machine's memory, in the words of `offload`."""
    section = own.get("zero_optimization") or {}
    there = [
        key
        for key in ("offload_param", "offload_optimizer")
        if (section.get(key) or {}).get("device") == "cpu"
    ]
    return "all" if "offload_param" in there else "optimizer" if there else "none"


def _bucket(own: Mapping[str, Any] | None, lm: nn.Module) -> int:
    """Elements of ZeRO's buckets; "auto" is the square of the model's width."""
    size = ((own or {}).get("zero_optimization") or {}).get("reduce_bucket_size", zero.BUCKET)
    count = sum(p.numel() for p in lm.parameters())
    return int(lm.config.hidden_size) ** 2 if size == "auto" else min(count, int(float(size)))  # type: ignore[union-attr,arg-type]


def _words(lm: nn.Module) -> int:
    embeddings: Any = lm.get_input_embeddings()  # type: ignore[operator]
    return int(embeddings.weight.shape[0])


def _sizes_of(
    lm: nn.Module, counts: Mapping[str, Count], method: Method, options: OptionSet, start: ModelOptions
) -> ModelSizes:
    whole = sum(counts.values(), Count())
    stored = (whole.total - whole.trained) * _stored(start, options)
    partly = options[AdapterOptions].finetuning_type == "freeze"
    made = _of_skeleton(lm, whole.total, whole.trained, method, stored)
    share = whole.trained / max(1, whole.total) if partly else 1.0  # frozen lower blocks keep nothing
    return replace(made, row=round(made.row * share), casts=round(made.casts * share))


def _of_skeleton(lm: nn.Module, total: int, trained: int, method: Method, frozen_bytes: float) -> ModelSizes:
    config: Any = lm.config
    config = config.get_text_config()
    found = activations(lm, method.length, method.bits, mixed=not method.zero)
    return ModelSizes(
        parameters=total,
        trained=trained,
        largest=max(p.numel() for p in lm.parameters()),
        frozen_bytes=round(frozen_bytes),
        layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        words=_words(lm),
        row=found.row,
        casts=found.casts if trained > total - trained else 0,
    )


def _stored(start: ModelOptions, options: OptionSet) -> float:
    """Bytes that a frozen parameter takes: as it is stored, or in few bits."""
    bits = getattr(options[AdapterOptions], "quantization_bit", None)
    if bits:
        return float(bits) / 8 + 0.06  # scales and what stays in 16 bits
    name = start.model_name_or_path
    if name is None or not Path(name).is_dir():
        return 4.0
    sizes = stored_bytes(name)
    return 2.0 if sizes and max(sizes, key=sizes.__getitem__) in ("bfloat16", "float16") else 4.0


def _critic(policy: ModelSizes, method: Method, rolling: RolloutOptions | None) -> ModelSizes:
    """The critic: of the reward model's size where it begins as one, with as large a share trained as of the policy."""
    path = None if rolling is None else rolling.critic_start
    if path is None or path.startswith("run:"):
        return policy
    lm = skeleton(path, trust_remote_code=False)
    total = sum(p.numel() for p in lm.parameters())
    trained = round(total * policy.trained / policy.parameters)
    return _of_skeleton(lm, total, trained, method, 4.0 * (total - trained))


def _frozen(kind: str, options: OptionSet, model: ModelSizes) -> dict[str, int]:
    """Bytes of the models beside those that are trained, in float32 or as `frozen_bits` says."""
    memory = options[MemoryOptions] if MemoryOptions in options else MemoryOptions()
    each = 4.0 if memory.frozen_bits is None else memory.frozen_bits / 8 + 0.06
    frozen: dict[str, int] = {}
    adapted = options[AdapterOptions].finetuning_type not in ("full", "freeze")
    if STAGES[kind].reference(options) and not adapted:
        frozen["reference"] = round(model.parameters * each)
    if STAGES[kind].samples:
        teacher = options[GRPOOptions].teacher_model if GRPOOptions in options else None
        if teacher is not None:
            frozen["teacher"] = round(_count(teacher, model) * 4.0)
        shared = memory.model_memory == "shared"  # then a reward model is an adapter over the policy's base
        for spec in options[RolloutOptions].specs:
            if isinstance(spec.settings, ModelSettings) and not shared:
                frozen[f"reward {spec.name}"] = round(_count(spec.settings.path, model) * each)
    if memory.frozen_offload and frozen:  # one of them is on the device at a time
        largest = max(frozen, key=frozen.__getitem__)
        return {largest: frozen[largest]}
    return frozen


def _count(path: str, like: ModelSizes) -> int:
    """Parameters of a model; one that an earlier step makes is as large as the policy."""
    if path.startswith("run:"):
        return like.parameters
    return sum(p.numel() for p in skeleton(path, trust_remote_code=False).parameters())


def _cache(lm: nn.Module, answers: int, longest: int, new_tokens: int, bits: int) -> int:
    """Bytes of keys, values and logits of answers that are sampled together."""
    config: Any = lm.config
    config = config.get_text_config()
    heads = int(config.num_attention_heads)
    kinds = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    token = 2 * int(config.num_hidden_layers) * kinds * size * bits // 8
    return min(answers, 256) * (token * (longest + new_tokens) + 40 * _words(lm))
