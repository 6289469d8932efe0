"""The data half of a `Setup`: records, trees and prompts from the options, and how they become steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from espalier.data.feed import DatasetFeed, Rows
from espalier.data.preflight.findings import TRAIN
from espalier.data.preflight.run import Preflight
from espalier.data.records import ASSISTANT, Chat, Prompt, Ranking
from espalier.data.sources import Loaded, load_records, split_validation
from espalier.data.specs import parse_specs
from espalier.data.templates import Template, prompt_text
from espalier.data.tokenise import EncodedPrompt, Encoder, encode_all, encode_prompts
from espalier.errors import UserError
from espalier.options import DataOptions, RunOptions, TrainOptions
from espalier.rollout.experience import Ask
from espalier.stages.stage import SamplePrompt
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
class Datasets:
    """The run's tokenizer and data.

    Attributes:
        options: an instance of each option class, by class.
        rank, world, device: this process.
        say: shows one line to the user and keeps it for the summary.
        tokenizer: given where it is known without the model's folder; else that folder's, or a new one.
        hashes: file -> sha256 of everything read so far.
        preflight: what the data read and tokenised so far looks like, and what was left out of it.
        padded: whether a row holds one branch only, as the probe of the run's model has said.
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

    template: Template = field(init=False)

    def __post_init__(self) -> None:
        self._loaded: dict[tuple[str, str], Loaded] = {}
        self.cutoff_len = self.option(DataOptions).cutoff_len
        self.preflight = Preflight(self.cutoff_len, lambda tree: draw_tree(tree, self.tokenizer.decode))

    def option(self, kind: type[T]) -> T:
        return self.options[kind]

    @property
    def stop(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self.encoder().stop

    def texts(self) -> list[str]:
        """The training data as text, for a new tokenizer."""
        kind = {"pretrain": "text", "sft": "chat"}.get(self.option(RunOptions).stage, "prompt")
        records = self.records(kind)[0]
        if kind == "text":
            return [record.text for record in records]
        return ["\n".join(m.content for m in record.messages) for record in records]

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
