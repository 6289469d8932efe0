"""What a run has ready when its stage is built: tokenizer, models and data, from the options.

Options stop here: what a stage gets from these methods are trees, prompts and models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from espalier.data.feed import DatasetFeed, Rows
from espalier.data.preflight.findings import TRAIN
from espalier.data.preflight.run import Preflight
from espalier.data.records import ASSISTANT, Chat, Prompt, Ranking
from espalier.data.sources import Loaded, load_records, split_validation
from espalier.data.specs import parse_specs
from espalier.data.templates import Template, choose_template, prompt_text
from espalier.data.tokenise import EncodedPrompt, Encoder, encode_all, encode_prompts
from espalier.engine.strategy import whole_parameters
from espalier.errors import UserError
from espalier.models import load, load_adapted
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.probe import probe
from espalier.models.quantise.methods import Quantisation
from espalier.models.saved import read_scalar_head
from espalier.options import (
    AdapterOptions,
    DataOptions,
    EngineOptions,
    ModelOptions,
    RunOptions,
    TokenizerOptions,
    TrainOptions,
)
from espalier.rollout.experience import Ask
from espalier.stages.adapting import adapted, frozen_part, merges_first
from espalier.stages.quantised import check_trainable, quantisation_of
from espalier.stages.stage import Live, SamplePrompt
from espalier.trees import Tree, lay_out_padded, lay_out_tree
from espalier.trees.draw import draw_tree

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How much of the data is a step, and how many steps there are."""

    trees_per_step: int | None
    tokens_per_step: int | None
    epochs: float
    max_steps: int | None
    seed: int


@dataclass
class Setup:
    """The run's tokenizer, models and data.

    Attributes:
        options: an instance of each option class, by class.
        rank, world, device: this process.
        say: shows one line to the user and keeps it for the summary.
        tokenizer: given where it is known without the model's folder; else that folder's, or a new one.
        hashes: file -> sha256 of everything read so far.
        preflight: what the data read and tokenised so far looks like, and what was left out of it.
        padded, layout_reason: what the probe of the run's model has said.
        head_was_loaded: whether the last model came with a scalar head of its own.
    """

    options: Mapping[type, Any]
    rank: int
    world: int
    device: torch.device
    say: Callable[[str], None]
    rejected_path: Path | None = None
    tokenizer: Any = None
    hashes: dict[str, str] = field(default_factory=dict)
    padded: bool = False
    layout_reason: str = ""
    head_was_loaded: bool = False

    def __post_init__(self) -> None:
        self._loaded: dict[tuple[str, str], Loaded] = {}
        self._policy: nn.Module | None = None
        model, data = self.option(ModelOptions), self.option(DataOptions)
        self.preflight = Preflight(data.cutoff_len, lambda tree: draw_tree(tree, self.tokenizer.decode))
        if self.tokenizer is None:
            self.tokenizer = self._make_tokenizer(model)
        self.template: Template = choose_template(self.tokenizer, model.template or "auto")
        self.cutoff_len = data.cutoff_len

    def option(self, kind: type[T]) -> T:
        return self.options[kind]

    # --- tokenizer and models -------------------------------------------------------------------

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
        return load.for_model(load.train_tokenizer(self._texts(), size), config)

    def _texts(self) -> list[str]:
        """The training data as text, for a new tokenizer."""
        kind = {"pretrain": "text", "sft": "chat"}.get(self.option(RunOptions).stage, "prompt")
        records = self.records(kind)[0]
        if kind == "text":
            return [record.text for record in records]
        return ["\n".join(m.content for m in record.messages) for record in records]

    @property
    def stop(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self.encoder().stop

    def load_policy(self, name: str | None = None, *, scalar_head: bool = False) -> TreeModel:
        """A model that the run trains: loaded or new, with its adapter, frozen part and checkpointing.

        Args:
            name: of another model than the run's own (a critic's start).
            scalar_head: whether it gives numbers; a head that was saved is kept, else a new one is made.
        """
        model, adapter = self.option(ModelOptions), self.option(AdapterOptions)
        wanted = None if merges_first(self.options, own=name is None) else quantisation_of(adapter)
        lm, head = self._lm(name or model.model_name_or_path, wanted, own=name is None)
        lm = adapted(lm, self.options, self.tokenizer, own=name is None)
        check_trainable(lm, adapter, self.option(EngineOptions))
        traits = probe(lm, wanted=model.layout)
        self.padded, self.layout_reason = traits.method == "padded", traits.reason
        self.say(traits.reason)
        frozen = frozen_part(lm, self.option(AdapterOptions))
        if frozen is not None:
            self.say(frozen)
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

    def _lm(
        self, name: str | None, quantisation: Quantisation | None = None, *, own: bool = False
    ) -> tuple[nn.Module, ScalarHead | None]:
        model = self.option(ModelOptions)
        if name is None:
            torch.manual_seed(self.option(RunOptions).seed)
            config = load.read_config(model.model_config or {})
            ids = {k: getattr(self.tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
            scaling = {"rope_scaling": model.rope_scaling, "length": self.cutoff_len}
            return load.new_lm(config, len(self.tokenizer), ids, **scaling), None  # type: ignore[arg-type]
        lm, head = (
            load_adapted.load_with_adapter(
                name,
                trust_remote_code=model.trust_remote_code,
                allow_pickle=model.allow_pickle,
                rope_scaling=model.rope_scaling if own else None,
                length=self.cutoff_len,
                quantisation=quantisation,
            ),
            read_scalar_head(name),
        )
        if quantisation is not None:
            self.say(f"the frozen linear layers are stored by {quantisation}")
        grown = load.fit_vocabulary(lm, self.tokenizer)
        if grown:
            self.say(
                f"{grown} rows were added to the embeddings: the tokenizer knows more tokens than the model"
            )
        return lm, head

    # --- data -----------------------------------------------------------------------------------

    def records(self, kind: str) -> tuple[list[Any], list[Any]]:
        """Training and held-out records of a kind; held out by `eval_dataset` or by `val_size`."""
        data, seed = self.option(DataOptions), self.option(RunOptions).seed
        train, held_out = self._load("dataset", data.dataset, kind), []
        if data.eval_dataset:
            held_out = self._load("eval_dataset", data.eval_dataset, kind)
        elif data.val_size:
            train, held_out = split_validation(train, data.val_size, seed)
        self.preflight.divided(train, held_out, apart=not data.eval_dataset)
        return train, held_out

    def load_file(self, value: Any, kind: str) -> list[Any]:
        """Records of a further data set that a stage's own option names."""
        return self._load(json.dumps(value, sort_keys=True, default=str), value, kind)

    def _load(self, key: str, value: Any, kind: str) -> list[Any]:
        data = self.option(DataOptions)
        if (key, kind) not in self._loaded:
            loaded = load_records(
                parse_specs(value, data.dataset_dir, data.interleave_probs if key == "dataset" else None),
                kind,
                skip_bad=data.skip_bad,
                rejected_path=self.rejected_path,
                seed=self.option(RunOptions).seed,
                mix=data.mix_strategy,
                max_samples=data.max_samples,
                data_split=data.data_split,
            )
            self.hashes.update(loaded.hashes)
            self.preflight.read(key, loaded)
            self._loaded[key, kind] = loaded
        return self._loaded[key, kind].records

    def encoder(self, *, answers_trained: bool = True) -> Encoder:
        overlong = self.option(DataOptions).overlong
        return Encoder(self.tokenizer, self.template, self.cutoff_len, overlong, answers_trained)

    def trees(self, records: Sequence[Any], part: str = TRAIN, *, answers_trained: bool = True) -> list[Tree]:
        made, account = encode_all(records, self.encoder(answers_trained=answers_trained))
        self.preflight.encoded(part, records, made, account, self.stop)
        if not made and records:
            causes = "; ".join(f"{n} {cause}" for cause, n in account.items())
            raise UserError(
                f"no record is left to train on: {causes}. Raise cutoff_len, or look at the data."
            )
        return made

    def prompts(
        self, records: Sequence[Prompt], max_prompt_length: int, part: str = TRAIN
    ) -> list[EncodedPrompt]:
        made, account = encode_prompts(records, self.encoder(), max_prompt_length=max_prompt_length)
        self.preflight.prompts(part, records, made, account)
        return made

    def sample_prompts(self, records: Sequence[Any]) -> list[SamplePrompt]:
        """Held-out prompts to answer at each evaluation, with what the data answers."""
        chosen: list[SamplePrompt] = []
        for record in records:
            if len(chosen) == self.option(RunOptions).samples:
                break
            made = _asked(record)
            if made is not None:
                text = prompt_text(self.template, made[0])
                tokens = self.tokenizer.encode(text, add_special_tokens=False)
                if len(tokens) < self.cutoff_len:
                    chosen.append(SamplePrompt(made[0][-1].content, tokens, made[1]))
        return chosen

    def sample_asks(self, asks: Sequence[Ask]) -> list[SamplePrompt]:
        chosen = asks[: self.option(RunOptions).samples]
        return [SamplePrompt(ask.text, ask.tokens, ask.reference) for ask in chosen]

    def only_pairs(self, records: Sequence[Any]) -> None:
        """DPO learns from pairs.

        Raises:
            UserError: a ranking of more than two answers, with its place.
        """
        for record in records:
            if isinstance(record, Ranking) and len(record.answers) != 2:
                raise UserError(
                    f"{record.source}: {len(record.answers)} ranked answers; DPO wants pairs. "
                    "Use stage: reward for rankings, or keep the best and the worst answer."
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

    # --- steps ----------------------------------------------------------------------------------

    @property
    def rows(self) -> Rows:
        data, train = self.option(DataOptions), self.option(TrainOptions)
        per_row = train.per_device_train_batch_size or 1
        if train.tokens_per_step:
            tokens = max(data.cutoff_len, min(train.tokens_per_step // self.world, 8192))
        else:
            tokens = data.cutoff_len * per_row
        lay_out = lay_out_padded if self.padded else lay_out_tree
        return Rows(lay_out, tokens if data.packing else 1, self.rank, self.world, str(self.device))

    @property
    def plan(self) -> Plan:
        train = self.option(TrainOptions)
        per_step = (
            None
            if train.tokens_per_step
            else (train.per_device_train_batch_size or 8) * train.gradient_accumulation_steps * self.world
        )
        seed = self.option(RunOptions).seed
        return Plan(per_step, train.tokens_per_step, train.num_train_epochs, train.max_steps, seed)

    def dataset_feed(self, trees: Sequence[Tree], annotate: Any = None) -> DatasetFeed:
        return DatasetFeed(trees, self.rows, annotate=annotate, **asdict(self.plan))


def _asked(record: Any) -> tuple[Any, str | None] | None:
    """The messages before the last answer of a record, and that answer."""
    if isinstance(record, Chat) and record.messages[-1].role == ASSISTANT:
        return record.messages[:-1], record.messages[-1].content
    if isinstance(record, Prompt):
        return record.messages, record.reference
    prompt, chosen = getattr(record, "prompt", None), getattr(record, "chosen", None)
    if prompt and chosen:
        return prompt, chosen[-1].content
    return None
