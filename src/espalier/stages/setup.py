"""What a run has ready when its stage is built: tokenizer, models and data (`datasets`), from the options.

Options stop here: what a stage gets from these methods are trees, prompts and models.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espalier.config.options import AdapterOptions, EngineOptions, ModelOptions, RunOptions, TokenizerOptions
from espalier.data.encode.templates import choose_template
from espalier.engine.whole import whole_parameters
from espalier.errors import UserError
from espalier.models import load, load_adapted
from espalier.models.adapters.adapter import load_adapter
from espalier.models.forward import Traits, TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.probe import probe
from espalier.models.quantise.methods import Quantisation
from espalier.models.saved import read_scalar_head
from espalier.models.tokenizers.tokenizer_file import disagreement
from espalier.stages.adapting import adapted, frozen_part, hold_frozen, merges_first
from espalier.stages.datasets import Datasets
from espalier.stages.parts import Live
from espalier.stages.quantised import check_trainable, quantisation_of


@dataclass
class Setup(Datasets):
    """The run's tokenizer, models and data (see `Datasets`).

    Attributes:
        followers: are asked to take the policy's weights as they are, before something is sampled from them.
    """

    followers: list[Callable[[Live], None]] = field(default_factory=list, init=False)

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
        config = load.read_config(model.model_config or {})
        if name is not None:
            made = load.load_tokenizer(name, trust_remote_code=model.trust_remote_code)
            return load.for_model(made, model.model_name_or_path or config)
        wanted = self.option(TokenizerOptions).vocab_size
        size = wanted or int(config.get("vocab_size") or 8192)
        self.say(f"training a byte-level BPE tokenizer of {size} tokens on the run's own text")
        return load.for_model(load.train_tokenizer(self.texts(), size), config)

    def load_policy(self, name: str | None = None, *, scalar_head: bool = False) -> TreeModel:
        """A model that the run trains: loaded or new, with its adapter, frozen part and checkpointing.

        Args:
            name: of another model than the run's own (a critic's start).
            scalar_head: whether it gives numbers; a head that was saved is kept, else a new one is made.
        """
        model, adapter = self.option(ModelOptions), self.option(AdapterOptions)
        wanted = None if merges_first(self.options, own=name is None) else quantisation_of(adapter)
        if name is not None:
            self._check_tokenizer(name)
        lm, head, new = self._lm(name or model.model_name_or_path, wanted, own=name is None)
        lm = adapted(lm, self.options, self.tokenizer, own=name is None, new_tokens=new)
        check_trainable(lm, adapter, self.option(EngineOptions))
        traits = self.traits(lm)
        self.say(traits.reason)
        frozen = frozen_part(lm, self.option(AdapterOptions))
        if frozen is not None:
            self.say(frozen)
        self._hold_frozen(lm, name or model.model_name_or_path)
        self._tell_of_new(lm, new)
        if not scalar_head:
            head = None
        elif head is None:
            head = ScalarHead(load.hidden_size(lm))
        if self.option(EngineOptions).gradient_checkpointing:
            load.checkpoint_activations(lm)
        return TreeModel(lm, traits, head).to(self.device)

    def _hold_frozen(self, lm: nn.Module, name: str | None, *, all_frozen: bool = False) -> None:
        line = hold_frozen(lm, self.options, name, all_frozen=all_frozen)
        if line is not None:
            self.say(line if name is None else f"{name}: {line}")

    def _tell_of_new(self, lm: nn.Module, new: range) -> None:
        """Whether the rows of new tokens are learned, which otherwise stay at the mean of all others."""
        if not new:
            return
        embeddings = lm.get_input_embeddings()  # type: ignore[operator]
        which = f"{len(new)} new tokens ({', '.join(self.tokenizer.convert_ids_to_tokens(list(new[:3])))}, …)"
        if any(parameter.requires_grad for parameter in embeddings.parameters()):
            self.say(f"{which}: their embeddings are trained")
        else:
            self.say(
                f"{which} stay at their first embeddings, for nothing trains these: use finetuning_type lora or full, "
                "or freeze with freeze_extra_modules: [the embeddings' name]"
            )

    def load_stacked(self, name: str, *, trainable: bool) -> TreeModel:
        """A reward model that is an adapter, on top of its base instead of merged into it, with its scalar head.

        Raises:
            UserError: it has no scalar head.
        """
        self._check_tokenizer(name)
        lm, _, _ = self._lm(load_adapted.base_of(name), quantisation_of(self.option(AdapterOptions)))
        lm, head = load_adapter(lm, name, trainable=trainable), self._head(name)
        if head is None:
            raise UserError(
                f"{name}: is no reward model (no scalar head). Train one with `stage: reward` first."
            )
        traits = self.traits(lm)
        self._hold_frozen(lm, load_adapted.base_of(name), all_frozen=not trainable)
        if trainable and self.option(EngineOptions).gradient_checkpointing:
            load.checkpoint_activations(lm)
        return TreeModel(lm, traits, head).to(self.device)

    def load_frozen(self, name: str, *, scalar_head: bool = False, tokenizer: Any = None) -> TreeModel:
        """Another model (a reward model, a critic's start); without a scalar head of its own it is an error.

        Args:
            tokenizer: its own, where it does not read the policy's ids.
        """
        if tokenizer is None:
            self._check_tokenizer(name, "Or set reward_retokenize: true." if scalar_head else "")
        lm, head, _ = self._lm(name, tokenizer=tokenizer)
        if scalar_head and head is None:
            raise UserError(
                f"{name}: is no reward model (no scalar head). Train one with `stage: reward` first."
            )
        traits = self.traits(lm)
        self._hold_frozen(lm, name, all_frozen=True)
        return TreeModel(lm, traits, head if scalar_head else None).to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """The run's precision, for what is computed before the models are prepared, or beside them."""
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = kinds.get(self.option(EngineOptions).precision)
        return torch.autocast(self.device.type, kind, enabled=kind is not None)

    @property
    def has_scalar_head(self) -> bool:
        """Whether the run's own model comes with a scalar head, from an earlier reward stage."""
        name = self.option(ModelOptions).model_name_or_path
        return name is not None and self._head(name) is not None

    def _head(self, name: str) -> ScalarHead | None:
        return read_scalar_head(name, allow_pickle=self.option(ModelOptions).allow_pickle)

    def _check_tokenizer(self, name: str, further: str = "") -> None:
        """A model beside the policy reads the policy's ids, which must mean the same to it.

        Raises:
            UserError: its folder has a tokenizer that gives other ids.
        """
        if not load.has_tokenizer(Path(name)):
            return
        ends = [self.tokenizer.decode([token]) for token in self.stop]
        trusted = self.option(ModelOptions).trust_remote_code
        other = load.load_tokenizer(name, trust_remote_code=trusted)
        text = disagreement(self.tokenizer, other, ends)
        if text is not None:
            raise UserError(
                f"{name}: has another tokenizer than the model that is trained ({text[:40]!r} gets other ids), and would "
                "read its answers as other words. Train it from the same base, or take one with the same tokenizer."
                f"{further and ' '}{further}"
            )

    def traits(self, lm: nn.Module) -> Traits:
        """What the probe finds out about a model of this run."""
        model = self.option(ModelOptions)
        return probe(lm, wanted=model.layout, attention=model.attn_implementation)

    def _lm(
        self,
        name: str | None,
        quantisation: Quantisation | None = None,
        *,
        own: bool = False,
        tokenizer: Any = None,
    ) -> tuple[nn.Module, ScalarHead | None, range]:
        """A model, its scalar head, and the ids that it has not met before."""
        model = self.option(ModelOptions)
        if name is None:
            torch.manual_seed(self.option(RunOptions).seed)
            config = load.read_config(model.model_config or {})
            ids = {k: getattr(self.tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
            scaling = {"rope_scaling": model.rope_scaling, "length": self.cutoff_len}
            return load.new_lm(config, len(self.tokenizer), ids, **scaling), None, range(0)  # type: ignore[arg-type]
        lm, head = (
            load_adapted.load_with_adapter(
                name,
                trust_remote_code=model.trust_remote_code,
                allow_pickle=model.allow_pickle,
                rope_scaling=model.rope_scaling if own else None,
                length=self.cutoff_len,
                quantisation=quantisation,
            ),
            self._head(name),
        )
        if quantisation is not None:
            self.say(f"the frozen linear layers are stored by {quantisation}")
        rows = int(lm.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        grown = load.fit_vocabulary(lm, tokenizer or self.tokenizer)
        if grown:
            self.say(
                f"{grown} rows were added to the embeddings: the tokenizer knows more tokens than the model"
            )
        return lm, head, range(self.known_tokens(name, rows), len(self.tokenizer))

    def known_tokens(self, name: str, rows: int) -> int:
        """How many of the run's tokens a model that was trained before, with so many rows, has met."""
        model = self.option(ModelOptions)
        if model.tokenizer is None or not load.has_tokenizer(Path(name)):
            return rows
        return min(rows, len(load.load_tokenizer(name, trust_remote_code=model.trust_remote_code)))

    def refresh_sampler(self, live: Live, policy: TreeModel) -> None:
        """Bring what is sampled from up to date: a server, or a copy where the trained weights are sharded."""
        for refresh in self.followers:
            refresh(live)
        if live.sampler is None:
            return
        whole = whole_parameters(live.accelerator, live.module)
        prefix = next(n for n, m in live.inner.named_modules() if m is policy.lm) + "."
        with torch.no_grad():
            for name, parameter in live.sampler.named_parameters():
                if prefix + name in whole:
                    parameter.copy_(whole[prefix + name])
