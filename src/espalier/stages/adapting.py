"""From the options to what is trained of a model: which adapters it gets, which weights stay, which ranks move.

Options stop here, as in `setup`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from espalier.config.option_set import OptionSet
from espalier.config.options import (
    AdaloraOptions,
    AdapterOptions,
    DtypeOptions,
    EngineOptions,
    LoraOptions,
    ModelOptions,
    RunOptions,
    VirtualTokenOptions,
)
from espalier.engine.step import Objective
from espalier.engine.track import Numbers
from espalier.errors import UserError
from espalier.models import dtypes, load_adapted
from espalier.models.adapters import adapter as adapters
from espalier.models.adapters import freezing
from espalier.models.adapters import kinds as adapter_kinds
from espalier.models.adapters.rank_allocation import RankAllocation, adalora_models, orthogonality
from espalier.models.forward import Outputs
from espalier.models.quantise.turn import is_quantised, quantised
from espalier.stages.parts import Live, Parts
from espalier.stages.quantised import holds_whole, quantisation_of
from espalier.trees import Batch


def adapted(
    lm: nn.Module, options: OptionSet, tokenizer: Any, *, own: bool, new_tokens: Sequence[int] = ()
) -> nn.Module:
    """The model with what the options train of it.

    Args:
        lm: a plain model, or one whose virtual tokens came with its folder: they are trained on.
        own: whether it is the run's own model, which `adapter_name_or_path` is for (a critic is not).
        new_tokens: ids that the model has not met before; a new LoRA trains their rows.

    Raises:
        UserError: adapters that cannot be stacked or trained on in this way.
    """
    kind = options[AdapterOptions].finetuning_type
    folders, on_top = _stacked(options, own=own)
    if folders:
        lm = load_adapted.with_adapters(lm, folders)
    if folders or on_top is not None:
        lm = adapters.merged(lm)  # says why where it cannot
    wanted = quantisation_of(options[AdapterOptions])
    if folders and wanted is not None:
        lm = quantised(lm, wanted)
    if on_top is not None:
        _check_same(on_top, adapters.KINDS[adapters.read_settings(on_top)["peft_type"]], kind)
        return adapters.load_adapter(lm, on_top, trainable=True)
    if adapters.is_adapted(lm):  # virtual tokens that came with the model's folder and cannot be merged
        _check_same("model_name_or_path" if own else "the reward model", str(adapters.kind_of(lm)), kind)
        return adapters.trained_on(lm)
    return lm if kind in ("full", "freeze") else new_adapter(lm, options, tokenizer, new_tokens)


def merges_first(options: OptionSet, *, own: bool) -> bool:
    """Whether adapters are merged into the model before anything else, for which it has to be there in floats."""
    return bool(_stacked(options, own=own)[0])


def _stacked(options: OptionSet, *, own: bool) -> tuple[list[str], str | None]:
    """Adapters that are merged, and the one that is trained on."""
    folders = list(options[ModelOptions].adapter_name_or_path) if own else []
    trained = options[AdapterOptions].finetuning_type not in ("full", "freeze")
    if folders and trained and not options[AdapterOptions].create_new_adapter:
        return folders[:-1], folders[-1]
    return folders, None


def _check_same(where: str, trained: str, kind: str) -> None:
    if trained != kind and {trained, kind} != {"p_tuning", "prompt"}:
        raise UserError(
            f"{where} is an adapter of kind {trained}, and finetuning_type is {kind}. Set finetuning_type: {trained} to "
            "train it on; or, where it can be merged, give it as adapter_name_or_path with create_new_adapter: true."
        )


def new_adapter(
    lm: nn.Module, options: OptionSet, tokenizer: Any, new_tokens: Sequence[int] = ()
) -> nn.Module:
    """The model with a new adapter of the kind that the options name; the same on every process and at a resume."""
    kind = options[AdapterOptions].finetuning_type
    lora, ada, virtual = options[LoraOptions], options[AdaloraOptions], options[VirtualTokenOptions]
    torch.manual_seed(options[RunOptions].seed)
    if kind == "lora":
        if lora.pissa_init and is_quantised(lm):
            raise UserError(
                "`pissa_init` takes a part of each weight into LoRA, which weights in few bits have no room for. Remove "
                "pissa_init or quantization_bit."
            )
        return adapter_kinds.add_lora(
            lm,
            rank=lora.lora_rank,
            alpha=lora.lora_alpha,
            dropout=lora.lora_dropout,
            target=lora.lora_target,
            bias=lora.lora_bias,
            variant=adapter_kinds.LoraVariant(
                lora.use_rslora,
                lora.use_dora,
                lora.modules_to_save,
                new_tokens,
                lora.pissa_iter if lora.pissa_init else None,
            ),
        )
    if kind == "adalora":
        return adapter_kinds.add_adalora(
            lm,
            first_rank=ada.adalora_init_r,
            rank=ada.adalora_target_r or lora.lora_rank,
            alpha=lora.lora_alpha,
            dropout=lora.lora_dropout,
            target=lora.lora_target,
            beta=ada.adalora_beta,
            orthogonality=ada.adalora_orth_reg,
        )
    if kind == "ia3":
        return adapter_kinds.add_ia3(lm, target=lora.lora_target)
    adapter_kinds.check_virtual(lm, kind)
    tokens, width = virtual.num_virtual_tokens, virtual.prompt_encoder_hidden_size
    text = virtual.prompt_init_text
    ids = tokenizer.encode(text, add_special_tokens=False) if text else None
    if kind == "prompt":
        return adapter_kinds.add_prompt(lm, tokens=tokens, text=ids)
    if kind == "p_tuning":
        return adapter_kinds.add_p_tuning(lm, tokens=tokens, hidden_size=width)
    assert kind == "prefix"
    return adapter_kinds.add_prefix(
        lm, tokens=tokens, text=ids, projection=virtual.prefix_projection, hidden_size=width
    )


def hold_frozen(
    lm: nn.Module, options: OptionSet, name: str | None, *, all_frozen: bool = False
) -> str | None:
    """Hold in 16 bits what is not trained, where that is asked for or changes no number; returns a line about it.

    Args:
        name: of the model in `lm`; None for a new one.
        all_frozen: whether nothing of it is trained.
    """
    wanted, engine = options[DtypeOptions].dtype, options[EngineOptions]
    own = dtypes.stored_types(load_adapted.plain_base(name)).usual if name else torch.float32
    kind = own if wanted == "auto" else getattr(torch, wanted)
    if kind == torch.float32 or is_quantised(lm):
        return None
    shown, saved = str(kind).removeprefix("torch."), 0
    if engine.precision == "fp32":
        why = "products of float32 (precision: fp32) take no weights of 16 bits"
    elif not holds_whole(engine):
        why = f"strategy: {engine.strategy} cuts or casts the weights"
    else:
        why = "it is for linear layers that are not trained, and all are"
        saved = dtypes.hold_in(lm, kind, exactly=wanted == "auto", all_frozen=all_frozen)
    if saved:
        return f"linear layers that are not trained are held in {shown} ({saved / 2**20:,.1f} MiB less)"
    return None if wanted == "auto" else f"weights stay float32 in spite of dtype: {wanted}: {why}"


def frozen_part(lm: nn.Module, options: AdapterOptions) -> str | None:
    """Freeze what the options keep out of the training; returns a line about it."""
    if options.finetuning_type not in ("full", "freeze"):
        return None
    layers, modules = options.freeze_trainable_layers, options.freeze_trainable_modules
    if layers is not None or modules or options.freeze_extra_modules:
        trained = freezing.train_only(lm, layers=layers, modules=modules, extra=options.freeze_extra_modules)
        return f"{len(trained)} weights are trained, from {trained[0]} to {trained[-1]}"
    if not options.freeze_ratio:
        return None
    frozen = freezing.freeze_lowest(lm, options.freeze_ratio, embeddings=options.freeze_embeddings)
    shown = f"the lowest {frozen} blocks are frozen"
    return (
        f"the embeddings and {shown}" if options.freeze_embeddings else f"{shown}, the embeddings are trained"
    )


# --- AdaLoRA ------------------------------------------------------------------------------------------


class Orthogonal:
    """An objective with AdaLoRA's regulariser added to its loss, once a step however the step is cut."""

    def __init__(self, objective: Objective, models: list[Any]) -> None:
        self._objective, self._models = objective, models
        self.want = objective.want

    def count(self, batch: Batch) -> float:
        return self._objective.count(batch)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        total, numbers = self._objective.loss(outputs, batch)
        term = torch.stack([orthogonality(lm) for lm in self._models]).sum()
        # The loop divides by the units of the whole step, and these are this batch's share of them.
        units = self.count(batch)
        return total + term * units, {**numbers, "orthogonality": (term.detach() * units, units)}

    def check(self, first: dict[str, float]) -> None:
        self._objective.check(first)


def rank_allocations(parts: Parts, options: AdaloraOptions) -> tuple[Parts, list[RankAllocation]]:
    """The parts with what AdaLoRA adds to them: a regulariser, a decision after each step, and their state."""
    models = adalora_models(parts.trained)
    if not models:
        return parts, []
    made = [
        RankAllocation(
            lm, first=options.adalora_tinit, last=options.adalora_tfinal, every=options.adalora_delta_t
        )
        for lm in models
    ]
    own = parts.after_step

    def after_step(live: Live, step: int) -> None:
        for allocation in made:
            allocation.after_step(step)
        if own is not None:
            own(live, step)

    names = {f"ranks-{i}": allocation for i, allocation in enumerate(made)}
    return replace(
        parts,
        objective=Orthogonal(parts.objective, models),
        after_step=after_step,
        learns=lambda batch: True,  # the regulariser always says something
        controllers={**parts.controllers, **names},
        averages={**parts.averages, **names},
    ), made
