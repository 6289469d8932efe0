"""Keys of the adapters, by kind; `finetuning_type` in `options.AdapterOptions` says which one is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from espalier.config.option import Options, option


@dataclass(frozen=True, kw_only=True)
class LoraOptions(Options):
    """Low-rank adapters (lora and adalora); ia3 takes lora_target too."""

    lora_rank: int = option(8, "The rank of the LoRA matrices.", min=1)
    lora_alpha: float | None = option(None, "LoRA's scale is alpha / rank; null: twice the rank.", above=0)
    lora_dropout: float = option(0.0, "Dropout before the LoRA matrices.", min=0, below=1)
    lora_target: list[str] = option(
        ["all"],
        "Layers that get LoRA: names, ends of paths or patterns; all: every linear one but the head; auto: the "
        "family's queries and values; embeddings and head by name.",
    )
    lora_bias: Literal["none", "all", "lora_only"] = option("none", "Which biases are trained with LoRA.")
    use_rslora: bool = option(False, "Scale LoRA by alpha / sqrt(rank), so that high ranks learn as fast.")
    use_dora: bool = option(False, "Learn the directions and the lengths of the weights apart (DoRA).")
    modules_to_save: list[str] = option(
        [], "Modules that are trained whole beside LoRA and saved with it, such as embed_tokens, lm_head."
    )
    pissa_init: bool = option(
        False,
        "Begin LoRA as the largest singular vectors of each weight (PiSSA); saved as plain LoRA, rank doubled.",
    )
    pissa_iter: int = option(
        16, "Iterations of the fast decomposition for pissa_init; -1: the exact one.", min=-1
    )
    loraplus_lr_ratio: float = option(
        1.0, "LoRA's B matrices learn at so many times the learning rate (LoRA+; 16 is usual).", above=0
    )

    def problems(self) -> list[str]:
        problems = []
        if self.pissa_init and self.use_dora:
            problems.append("`use_dora` and `pissa_init` begin LoRA in two ways. Remove one.")
        both = sorted(set(self.lora_target) & set(self.modules_to_save))
        if both:
            problems.append(
                f"{both[0]} is in lora_target and in modules_to_save, which trains it whole. Remove it from one."
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class AdaloraOptions(Options):
    """AdaLoRA: ranks that move to the layers that need them."""

    adalora_init_r: int = option(12, "The rank of every layer at the start.", min=2)
    adalora_target_r: int | None = option(None, "The layers' mean rank in the end; null: lora_rank.", min=1)
    adalora_tinit: int | None = option(
        None, "Steps at the start with all ranks; null: a tenth of all.", min=0
    )
    adalora_tfinal: int | None = option(
        None, "Steps at the end with the ranks that are left; null: a fifth of all.", min=0
    )
    adalora_delta_t: int = option(10, "Steps between two decisions.", min=1)
    adalora_beta: float = option(0.85, "Decay of the means that importance is judged by.", above=0, below=1)
    adalora_orth_reg: float = option(
        0.5, "Weight of the loss that keeps the singular vectors orthogonal.", min=0
    )


@dataclass(frozen=True, kw_only=True)
class VirtualTokenOptions(Options):
    """Learned tokens before every text (prompt, p_tuning, prefix)."""

    num_virtual_tokens: int = option(20, "How many virtual tokens.", min=1)
    prompt_init_text: str | None = option(
        None, "The text that prompt and prefix begin as; null: random tokens of the vocabulary."
    )
    prompt_encoder_hidden_size: int = option(
        128, "The width of the network behind p_tuning and a projected prefix.", min=1
    )
    prefix_projection: bool = option(False, "Make the prefix's keys and values by a small network.")
