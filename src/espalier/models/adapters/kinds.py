"""Adapters made anew, one function a kind, through PEFT; everything else of the model is frozen.

LoRA, AdaLoRA and IA3 begin as nothing: the model says what it said before. Virtual tokens begin as words: as the
embeddings (prompt tuning) or the keys and values (prefix tuning) of a text, so that the model begins as one that has
read that text; p-tuning and a projected prefix begin as what their small network makes of random places.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import nn

from espalier.errors import UserError
from espalier.models.adapters import pissa
from espalier.models.adapters.first_tokens import begin, embedded, first_ids, keys_values
from espalier.models.adapters.targets import (
    chosen_layers,
    is_inner,
    keys_values_inner,
    linear_layers,
    shortest,
    vocabulary_layers,
)
from espalier.models.encoder_decoder import is_encoder_decoder
from espalier.models.legacy.families import native_family
from espalier.models.positions.rope_modules import changes_with_length

_KNOWN = (
    ".*is_gradient_checkpointing.* is deprecated",  # PEFT asks for a property that transformers has renamed
    ".*a tied layer is part of the adapter",  # `tying` sees to it
    "fan_in_fan_out is set",  # layers of Conv1D, and a head that is none
)


def ignore_known() -> None:
    """PEFT's warnings about what a user could do nothing about."""
    for message in _KNOWN:
        warnings.filterwarnings("ignore", message=message)


@dataclass(frozen=True)
class LoraVariant:
    """What may be different about LoRA, and what is trained beside its matrices.

    Attributes:
        rslora: scale by alpha / sqrt(rank) (Kalajdzievski 2023).
        dora: learn the weights' directions and their lengths apart (Liu et al. 2024).
        modules_to_save: ends of the paths of modules that are trained whole and saved with the adapter.
        new_tokens: ids whose embeddings, and rows of an output head of its own, are trained.
        pissa: begin as the largest singular vectors of the weights; see `pissa.initialisation` for the number. None
            begins as nothing.
    """

    rslora: bool = False
    dora: bool = False
    modules_to_save: Sequence[str] = ()
    new_tokens: Sequence[int] = ()
    pissa: int | None = None


def add_lora(
    lm: nn.Module,
    *,
    rank: int,
    alpha: float | None,
    dropout: float,
    target: Sequence[str] | None,
    bias: str,
    variant: LoraVariant = LoraVariant(),
) -> nn.Module:
    """The model with low-rank adapters (Hu et al. 2021).

    Args:
        lm: a causal language model.
        rank: of the update, at least 1.
        alpha: the update is scaled by alpha / rank; None is 2 * rank.
        dropout: on the adapter's input, 0 to 1; no effect on the reference.
        target: see `targets.chosen_layers`; embeddings and head may be named; None is all linear layers.
        bias: "none", "all" or "lora_only".
        variant: see there.

    Raises:
        UserError: a target that matches no layer, or a module to save that does not exist.
    """
    targets = _targets(lm, target, vocabulary=variant.pissa is None)
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=targets,
        bias=bias,  # type: ignore[arg-type]
        use_rslora=variant.rslora,
        use_dora=variant.dora,
        task_type=_task(lm),
        fan_in_fan_out=_transposed(lm),
        init_lora_weights=True if variant.pissa is None else pissa.initialisation(variant.pissa),  # type: ignore[arg-type]
        **_beside(lm, variant, targets),
    )
    made = _made(lm, settings)
    if variant.pissa is not None:
        pissa.remember_start(made)
    return made


def _beside(lm: nn.Module, variant: LoraVariant, targets: Sequence[str]) -> dict[str, Any]:
    """PEFT's settings for what is trained beside LoRA's matrices."""
    wanted, given = list(variant.modules_to_save), dict[str, Any]()
    paths = [name for name, _ in lm.named_modules() if name]
    for name in wanted:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            near = difflib.get_close_matches(name, {path.rpartition(".")[2] for path in paths}, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"modules_to_save: {name} is no module of this model.{hint}")
    model: Any = lm
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    ends = {module: path.rpartition(".")[2] for path, module in lm.named_modules()}
    tied = outputs is None or outputs.weight is inputs.weight
    if wanted:
        # Embeddings that are also the head stay so, unless both are named.
        both = {ends[inputs], ends.get(outputs)} <= set(wanted)
        given |= {"modules_to_save": wanted, "ensure_weight_tying": tied and not both}
    if variant.new_tokens:
        layers = {ends[inputs]} if tied else {ends[inputs], ends[outputs]}
        rows = {name: list(variant.new_tokens) for name in sorted(layers - {*wanted, *targets})}
        given |= {"trainable_token_indices": rows} if rows else {}
    return given


def add_adalora(
    lm: nn.Module,
    *,
    first_rank: int,
    rank: int,
    alpha: float | None,
    dropout: float,
    target: Sequence[str] | None,
    beta: float,
    orthogonality: float,
) -> nn.Module:
    """The model with adapters in the form of a singular value decomposition (Zhang et al. 2023).

    Which singular values stay is decided during training, by `adapters.RankAllocation`.

    Args:
        first_rank: of every layer at the start, above `rank`.
        rank: the layers' mean in the end.
        alpha: the update is scaled by alpha / first_rank; None is 2 * rank.
        beta: decay of the means that importance is judged by, above 0 and below 1.
        orthogonality: weight of the regulariser that keeps the singular vectors orthogonal.

    Raises:
        UserError: a target that matches no layer, or ranks that leave nothing to give away.
    """
    if first_rank <= rank:
        raise UserError(
            f"adalora_init_r {first_rank} has to be above adalora_target_r {rank}: AdaLoRA gives ranks away. "
            "Raise it (half as much again is usual), or use finetuning_type: lora."
        )
    settings = AdaLoraConfig(
        init_r=first_rank,
        target_r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=_targets(lm, target),
        beta1=beta,
        beta2=beta,
        orth_reg_weight=orthogonality,
        total_step=1,  # until the run's length is known
        task_type=_task(lm),
        fan_in_fan_out=_transposed(lm),
    )
    return _made(lm, settings)


def add_ia3(lm: nn.Module, *, target: Sequence[str] | None) -> nn.Module:
    """The model with learned factors of its keys, values and inner activations (Liu et al. 2022).

    Args:
        target: layers; None, ``["all"]`` or ``["auto"]`` are those of the paper. A layer that ends a feed-forward
            part gets factors of its input, any other of its output.
    """
    if target is None or list(target) in (["all"], ["auto"]):
        outer, inner = keys_values_inner(lm)
    else:
        chosen = chosen_layers(lm, target)
        inner = [name for name in chosen if is_inner(name)]
        outer = [name for name in chosen if name not in inner]
    settings = IA3Config(
        target_modules=[*outer, *inner],
        feedforward_modules=inner,
        task_type=_task(lm),
        fan_in_fan_out=_transposed(lm),
    )
    return _made(lm, settings)


def check_virtual(lm: nn.Module, kind: str) -> None:
    """Whether this model can have virtual tokens before its texts.

    Raises:
        UserError: it finds its prompt by the ids that it reads, or has a state in the place of keys and values.
    """
    config: Any = lm.config
    family, why = native_family(config.model_type), None
    if is_encoder_decoder(lm) or (family is not None and family.reads_marks):
        why = "it finds the end of its prompt by marks among the ids, and virtual tokens have none"
    elif config.model_type == "rwkv":
        why = "it has a state in the place of keys and values"
    if why is not None:
        raise UserError(
            f"finetuning_type: {kind} is not possible with {config.model_type}: {why}. Use lora, or ia3."
        )
    if config.is_encoder_decoder:
        raise UserError(
            f"finetuning_type: {kind} is not possible with {config.model_type}: it has an encoder and a decoder, and "
            "virtual tokens stand before one text. Use lora."
        )
    if changes_with_length(lm):
        raise UserError(
            f"finetuning_type: {kind} with positions that change with the length of a text (dynamic NTK, longrope) is "
            "not possible: what stands before all texts would have to change with each. Use lora, or rope_scaling: yarn."
        )


def add_prompt(lm: nn.Module, *, tokens: int, text: Sequence[int] | None) -> nn.Module:
    """The model after so many learned embeddings (prompt tuning, Lester et al. 2021).

    Args:
        tokens: how many, at least 1.
        text: ids that they begin as, repeated or cut to fit; None takes random ones of the vocabulary.
    """
    settings = PromptTuningConfig(num_virtual_tokens=tokens, task_type="CAUSAL_LM")
    start = embedded(lm, first_ids(lm, tokens, text))
    made = _made(lm, settings)
    begin(made, start)
    return made


def add_p_tuning(lm: nn.Module, *, tokens: int, hidden_size: int) -> nn.Module:
    """The model after so many embeddings that a small network makes (p-tuning, Liu et al. 2021).

    Args:
        hidden_size: of the network.
    """
    settings = PromptEncoderConfig(
        num_virtual_tokens=tokens, encoder_hidden_size=hidden_size, task_type="CAUSAL_LM"
    )
    return _made(lm, settings)


def add_prefix(
    lm: nn.Module, *, tokens: int, text: Sequence[int] | None, projection: bool, hidden_size: int
) -> nn.Module:
    """The model after so many learned keys and values in each layer (prefix tuning, Li & Liang 2021; p-tuning v2).

    Args:
        text: as in `add_prompt`; the prefix begins as what the layers keep of it. Not with `projection`.
        projection: make the keys and values by a small network with this hidden size.

    Raises:
        UserError: an architecture whose layers keep anything else than keys and values of one shape.
    """
    kept = keys_values(lm, first_ids(lm, tokens, text))
    layers, _, heads, _, size = kept.shape
    settings = PrefixTuningConfig(
        num_virtual_tokens=tokens,
        num_layers=layers,
        num_attention_heads=heads,
        token_dim=heads * size,
        prefix_projection=projection,
        encoder_hidden_size=hidden_size,
        task_type="CAUSAL_LM",
    )
    made = _made(lm, settings)
    config: Any = made.active_peft_config
    if config.token_dim != heads * size:
        raise UserError(
            f"finetuning_type: prefix is not possible with {type(lm).__name__}: its keys hold more than its heads "
            "(positions, for ALiBi). Use lora, ia3, or prompt."
        )
    if not projection:  # (L, 2, K, n, D) to (n, L * 2 * K * D)
        begin(made, kept.permute(3, 0, 1, 2, 4).reshape(tokens, -1))
    return made


def _made(lm: nn.Module, settings: PeftConfig) -> nn.Module:
    with warnings.catch_warnings():
        ignore_known()
        return get_peft_model(lm, settings)


def _targets(lm: nn.Module, target: Sequence[str] | None, *, vocabulary: bool = False) -> list[str]:
    chosen = chosen_layers(lm, target or ["all"], vocabulary=vocabulary)
    return shortest(chosen, [*linear_layers(lm), *(vocabulary_layers(lm) if vocabulary else [])])


def _task(lm: nn.Module) -> str:
    """What PEFT calls the model, for others who load the adapter."""
    return "SEQ_2_SEQ_LM" if is_encoder_decoder(lm) else "CAUSAL_LM"


def _transposed(lm: nn.Module) -> bool:
    return any(type(m).__name__ == "Conv1D" for m in lm.modules())
