"""What a run has ready when its stage is built: tokenizer, models and data (`datasets`), from the options.

Options stop here: what a stage gets from these methods are trees, prompts and models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from espalier.data.templates import choose_template
from espalier.engine.strategy import whole_parameters
from espalier.errors import UserError
from espalier.models import adapters, load
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.probe import probe
from espalier.models.saved import read_scalar_head
from espalier.options import AdapterOptions, EngineOptions, ModelOptions, RunOptions, TokenizerOptions
from espalier.stages.datasets import Datasets
from espalier.stages.stage import Live


@dataclass
class Setup(Datasets):
    """The run's tokenizer, models and data (see `Datasets`).

    Attributes:
        layout_reason: what the probe of the run's model has said.
        head_was_loaded: whether the last model came with a scalar head of its own.
    """

    layout_reason: str = ""
    head_was_loaded: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        model = self.option(ModelOptions)
        if self.tokenizer is None:
            self.tokenizer = self._make_tokenizer(model)
        self.template = choose_template(self.tokenizer, model.template or "auto")

    def _make_tokenizer(self, model: ModelOptions) -> Any:
        name = model.tokenizer or model.model_name_or_path
        if model.model_name_or_path is not None:
            load.check_folder(model.model_name_or_path, allow_pickle=model.allow_pickle)
        if name is not None:
            return load.load_tokenizer(name, trust_remote_code=model.trust_remote_code)
        wanted = self.option(TokenizerOptions).vocab_size
        config = load.read_config(model.model_config or {})
        size = wanted or int(config.get("vocab_size") or 8192)
        self.say(f"training a byte-level BPE tokenizer of {size} tokens on the run's own text")
        return load.train_tokenizer(self.texts(), size)

    def load_policy(self, name: str | None = None, *, scalar_head: bool = False) -> TreeModel:
        """A model that the run trains: loaded or new, with its adapter, frozen part and checkpointing.

        Args:
            name: of another model than the run's own (a critic's start).
            scalar_head: whether it gives numbers; a head that was saved is kept, else a new one is made.
        """
        model, adapter = self.option(ModelOptions), self.option(AdapterOptions)
        lm, head = self._lm(name or model.model_name_or_path)
        traits = probe(lm, wanted=model.layout)
        self.padded, self.layout_reason = traits.method == "padded", traits.reason
        self.say(traits.reason)
        lm = self._adapted(lm, model, adapter)
        if adapter.finetuning_type in ("full", "freeze") and adapter.freeze_ratio:
            frozen = load.freeze_lowest(lm, adapter.freeze_ratio)
            self.say(f"the embeddings and the lowest {frozen} blocks are frozen")
        self.head_was_loaded = head is not None
        if not scalar_head:
            head = None
        elif head is None:
            head = ScalarHead(load.hidden_size(lm))
        if self.option(EngineOptions).gradient_checkpointing:
            load.checkpoint_activations(lm)
        return TreeModel(lm, traits, head).to(self.device)

    def load_frozen(self, name: str, *, scalar_head: bool = False) -> TreeModel:
        """Another model (a reward model, a critic's start); without a scalar head of its own it is an error."""
        lm, head = self._lm(name)
        if scalar_head and head is None:
            raise UserError(
                f"{name}: is no reward model (no scalar head). Train one with `stage: reward` first."
            )
        traits = probe(lm, wanted=self.option(ModelOptions).layout)
        return TreeModel(lm, traits, head if scalar_head else None).to(self.device)

    def _lm(self, name: str | None) -> tuple[nn.Module, ScalarHead | None]:
        model = self.option(ModelOptions)
        if name is None:
            torch.manual_seed(self.option(RunOptions).seed)
            config = load.read_config(model.model_config or {})
            ids = {k: getattr(self.tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
            return load.new_lm(config, len(self.tokenizer), ids), None
        lm, head = (
            load.load_with_adapter(
                name, trust_remote_code=model.trust_remote_code, allow_pickle=model.allow_pickle
            ),
            read_scalar_head(name),
        )
        grown = load.fit_vocabulary(lm, self.tokenizer)
        if grown:
            self.say(
                f"{grown} rows were added to the embeddings: the tokenizer knows more tokens than the model"
            )
        return lm, head

    def _adapted(self, lm: nn.Module, model: ModelOptions, adapter: AdapterOptions) -> nn.Module:
        kind = adapter.finetuning_type
        if model.adapter_name_or_path:
            return adapters.load_adapter(lm, model.adapter_name_or_path, trainable=kind == "lora")
        if kind in ("full", "freeze"):
            return lm
        if kind != "lora":
            raise UserError(f"finetuning_type: {kind} is not available yet. Use full, freeze or lora.")
        return adapters.add_lora(
            lm,
            rank=adapter.lora_rank,
            alpha=adapter.lora_alpha,
            dropout=adapter.lora_dropout,
            target=list(adapter.lora_target),
            bias=adapter.lora_bias,
        )

    def refresh_sampler(self, live: Live, policy: TreeModel) -> None:
        """Bring the copy that is sampled from up to date, where the trained weights are sharded."""
        if live.sampler is None:
            return
        whole = whole_parameters(live.accelerator, live.module)
        prefix = next(n for n, m in live.inner.named_modules() if m is policy.lm) + "."
        with torch.no_grad():
            for name, parameter in live.sampler.named_parameters():
                if prefix + name in whole:
                    parameter.copy_(whole[prefix + name])
