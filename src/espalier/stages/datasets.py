"""The data half of a `Setup`: records, trees and prompts from the options, and how they become steps.

Records are read and tokenised once, into stores on disk (`espalier.data.store`), when their trees are first asked for;
what is handed on are their numbers, and trees that are read when they are needed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from espalier.config.option_set import OptionSet
from espalier.config.options import (
    DataOptions,
    EvaluationOptions,
    Options,
    RunOptions,
    TokenizedOptions,
    TrainOptions,
    TurnOptions,
)
from espalier.data.choice.choose import Picks, held_out, without
from espalier.data.encode.templates import Template, prompt_text
from espalier.data.encode.tokenise import Encoder
from espalier.data.preflight.findings import HELD_OUT, TRAIN
from espalier.data.preflight.run import Preflight
from espalier.data.read.specs import DatasetSpec, parse_specs
from espalier.data.records import ASSISTANT, Messages, Record
from espalier.data.steps.feed import Batches, DatasetFeed, Rows
from espalier.data.store.again import all_records, examples, records_at
from espalier.data.store.job import Job
from espalier.data.store.open import ReadSettings, opened
from espalier.data.store.stack import Choice, Forest, Stack, stored
from espalier.disk.temporary import temporary_folder
from espalier.errors import UserError
from espalier.models.forward import TreeModel
from espalier.rollout.asks import Asks
from espalier.stages.parts import SamplePrompt
from espalier.trees import Tree, lay_out_padded, lay_out_tree
from espalier.trees.draw import draw_tree

T = TypeVar("T", bound=Options)


@dataclass(frozen=True)
class Plan:
    """How much of the data is a step, and how many steps there are."""

    trees_per_step: int | None
    tokens_per_step: int | None
    epochs: float
    max_steps: int | None
    seed: int


@dataclass(frozen=True)
class RecordSet:
    """Records that an option names, of one kind, not read yet.

    Attributes:
        key: the option's name, or its value as text.
        part: `TRAIN` or `HELD_OUT` where `val_size` divides them, else "".
    """

    key: str
    specs: tuple[DatasetSpec, ...]
    kind: str
    part: str = ""
    owner: Datasets | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        if not self.specs:
            return 0
        assert self.owner is not None
        return len(self.owner.choice(self))


@dataclass
class Datasets:
    """The run's tokenizer and data.

    Attributes:
        options: an instance of each option class, by class.
        reads: the kind of records that its stage is made for, one of `espalier.data.records.KINDS`.
        rank, world, device: this process.
        say: shows one line to the user and keeps it for the summary.
        rejected_path: where bad records are written.
        tokenizer: given where it is known without the model's folder; else that folder's, or a new one.
        hashes: file -> sha256 of everything read so far.
        kept: where tokenised records are kept unless `tokenized_path` says it; None: nowhere, after the run.
        show: told how far a long reading is.
        preflight: what the data read and tokenised so far looks like, and what was left out of it.
    """

    options: OptionSet
    reads: str
    rank: int
    world: int
    device: torch.device
    say: Callable[[str], None]
    rejected_path: Path | None = None
    tokenizer: Any = None
    hashes: dict[str, str] = field(default_factory=dict)
    kept: Path | None = None
    show: Callable[[str], None] = lambda text: None

    template: Template = field(init=False)

    def __post_init__(self) -> None:
        tokenized = self.option(TokenizedOptions).tokenized_path
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if tokenized is not None:
            self.kept = Path(tokenized).expanduser()
        elif self.kept is None:
            self._temporary = temporary_folder()
            self.kept = Path(self._temporary.name)
        self.cutoff_len = self.option(DataOptions).cutoff_len
        self.preflight = Preflight(self.cutoff_len, lambda tree: draw_tree(tree, self.tokenizer.decode))
        self._stacks: dict[tuple[str, str], Stack] = {}
        self._jobs: dict[tuple[str, str], Job] = {}
        self._picks: dict[tuple[str, str, str], Picks | None] = {}

    def option(self, kind: type[T]) -> T:
        option: T = self.options[kind]
        return option

    @property
    def stop(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self.encoder().stop

    # --- which records --------------------------------------------------------------------------

    def records(self, kind: str) -> tuple[RecordSet, RecordSet]:
        """Training and held-out records of a kind; held out by `eval_dataset` or by `val_size`."""
        data = self.option(DataOptions)
        specs = tuple(parse_specs(data.dataset, data.dataset_dir, data.interleave_probs))
        train, held_out = (RecordSet(key, specs, kind, owner=self) for key in ("dataset", "eval_dataset"))
        if data.eval_dataset:
            return train, replace(held_out, specs=tuple(parse_specs(data.eval_dataset, data.dataset_dir)))
        if data.val_size:
            return replace(train, part=TRAIN), replace(train, part=HELD_OUT)
        return train, replace(held_out, specs=())

    def load_file(self, value: Any, kind: str) -> RecordSet:
        """Records of a further data set that a stage's own option names."""
        specs = tuple(parse_specs(value, self.option(DataOptions).dataset_dir))
        return RecordSet(json.dumps(value, sort_keys=True, default=str), specs, kind, owner=self)

    def choice(self, records: RecordSet, job: Job | None = None) -> Choice:
        """The numbers of these records; read (and, with a job, tokenised) if that has not been done."""
        at = (records.key, records.kind)
        if at not in self._stacks or (job is not None and job != self._jobs[at]):
            self._open(records, job or self._job(records.kind))
        return Choice(self._stacks[at], self._picks[*at, records.part])

    def _open(self, records: RecordSet, job: Job) -> None:
        at = (records.key, records.kind)
        stack, order, loaded = opened(records.specs, job, self._reading)
        self._stacks[at], self._jobs[at] = stack, job
        self.hashes.update(loaded.hashes)
        self.preflight.read(records.key, loaded)
        if (*at, records.part) in self._picks:
            return
        self._picks[*at, ""] = order
        if records.part:
            every = Choice(stack, order)
            places = held_out(
                lambda: (stack.of_records("prompt", numbers) for numbers in every.chunks()),
                len(every),
                self.option(DataOptions).val_size,
                self.option(RunOptions).seed,
            )
            kept, set_aside = without(order, stack.records, places)
            self._picks[*at, TRAIN], self._picks[*at, HELD_OUT] = kept, set_aside

    @property
    def _reading(self) -> ReadSettings:
        data = self.option(DataOptions)
        assert self.kept is not None
        return ReadSettings(
            self.kept,
            self.option(TokenizedOptions).preprocessing_num_workers,
            data.skip_bad,
            self.rejected_path,
            self.option(RunOptions).seed,
            data.mix_strategy,
            data.max_samples,
            tuple(data.data_split) if data.data_split else None,
            self.show,
        )

    def _job(self, kind: str, encoder: Encoder | None = None, max_prompt_length: int | None = None) -> Job:
        if encoder is None:
            return Job(kind)
        return Job(kind, encoder, max_prompt_length=max_prompt_length, stop=self.stop)

    def _again(self, records: RecordSet, places: Sequence[int]) -> list[Record]:
        """Records at these places, read once more."""
        choice = self.choice(records)
        return records_at(records.specs, self._job(records.kind), self._reading, choice, places)

    def examples(self, records: RecordSet, limit: int) -> list[Record]:
        """The first records, and the first of each cause for which something was left out or cut."""
        choice, job = self.choice(records), self._job(records.kind)
        return examples(records.specs, job, self._reading, choice, self.preflight.account, limit)

    def texts(self) -> Iterator[str]:
        """The training data as text, for a new tokenizer."""
        return ("\n".join(record.texts) for record in self.all_of(self.records(self.reads)[0]))

    def all_of(self, records: RecordSet) -> Iterator[Record]:
        """Every record, read once more."""
        return all_records(records.specs, self._job(records.kind), self._reading, self.choice(records))

    # --- trees and prompts ----------------------------------------------------------------------

    def encoder(self, **encoding: Any) -> Encoder:
        """`encoding`: `answers_trained`, `score_at` and `blanks` of an `Encoder`."""
        turns = self.option(TurnOptions) if TurnOptions in self.options else TurnOptions()
        overlong = self.option(DataOptions).overlong
        return Encoder(self.tokenizer, self.template, self.cutoff_len, overlong, **asdict(turns), **encoding)

    def trees(self, records: RecordSet, part: str = TRAIN, **encoding: Any) -> Forest:
        """The trees of records that `records` or `load_file` gave, made when they are asked for; `encoding` as in `encoder`.

        Raises:
            UserError: bad records, one that is too long, or none that is left.
        """
        if not records.specs:
            return stored(Choice(Stack([])))
        job = self._job(records.kind, self.encoder(**encoding))
        choice = self._seen(records, part, job)
        forest = stored(choice)
        if not forest and len(choice):
            causes = "; ".join(f"{n} {cause}" for cause, n in self.preflight.account.items())
            raise UserError(
                f"no record is left to train on: {causes}. Raise cutoff_len, or look at the data."
            )
        return forest

    def asks(self, records: RecordSet, max_prompt_length: int, part: str = TRAIN) -> Asks:
        """Prompts to sample from; one longer than `max_prompt_length` is trimmed or left out, as `overlong` says."""
        if not records.specs:
            return Asks(Choice(Stack([])))
        choice = self._seen(records, part, self._job(records.kind, self.encoder(), max_prompt_length))
        return Asks(choice)

    def _seen(self, records: RecordSet, part: str, job: Job) -> Choice:
        choice = self.choice(records, job)
        self.preflight.part(part, choice, apart=bool(records.part))
        return choice

    def sample_prompts(self, records: RecordSet) -> list[SamplePrompt]:
        """Held-out prompts to answer at each evaluation, with what the data answers."""
        most = self.option(EvaluationOptions).samples
        chosen: list[SamplePrompt] = []
        count, step = len(records), max(4 * most, 16)
        for start in range(0, count if most else 0, step):
            if len(chosen) == most or start > 64 * step:
                break
            for record in self._again(records, range(start, min(start + step, count))):
                made = _asked(record)
                if made is None or len(chosen) == most:
                    continue
                text = prompt_text(self.template, made[0])
                tokens = self.tokenizer.encode(text, add_special_tokens=False)
                if len(tokens) < self.cutoff_len:
                    chosen.append(SamplePrompt(made[0][-1].content, tokens, made[1]))
        return chosen

    def sample_asks(self, asks: Asks) -> list[SamplePrompt]:
        chosen = asks[: self.option(EvaluationOptions).samples]
        return [SamplePrompt(ask.text, ask.tokens, ask.reference) for ask in chosen]

    def only_pairs(self, records: RecordSet) -> None:
        """DPO learns from pairs.

        Raises:
            UserError: a ranking of more than two answers, with its place.
        """
        choice = self.choice(records)
        for numbers in choice.chunks():
            answers = choice.stack.of_records("answers", numbers)
            (others,) = np.nonzero(answers != 2)
            if len(others):
                at = others[0]
                raise UserError(
                    f"{choice.stack.source(int(numbers[at]))}: {answers[at]} ranked answers; DPO wants pairs. "
                    "Use stage: reward for rankings, or keep the best and the worst answer."
                )

    # --- steps ----------------------------------------------------------------------------------

    def rows(self, model: TreeModel, *others: TreeModel, records: int | None = None) -> Rows:
        """Rows as `model` takes them, of a size that the others can unroll where they take no trees;
        `records` of a micro-batch, None: as many as are trained at a time."""
        data, train = self.option(DataOptions), self.option(TrainOptions)
        per_row = records or train.per_device_train_batch_size or 1
        if train.tokens_per_step and not records:
            # As for one process, so that rows and steps are the same on any number of them.
            tokens = max(data.cutoff_len, min(train.tokens_per_step, 8192))
        else:
            tokens = data.cutoff_len * per_row
        lay_out = lay_out_tree if model.traits.takes_trees else lay_out_padded
        unshared = not all(other.traits.takes_trees for other in others)
        most = tokens if data.packing else 1
        return Rows(lay_out, most, self.rank, self.world, str(self.device), unshared)

    @property
    def plan(self) -> Plan:
        train = self.option(TrainOptions)
        trees = (train.per_device_train_batch_size or 8) * train.gradient_accumulation_steps * self.world
        per_step, seed = None if train.tokens_per_step else trees, self.option(RunOptions).seed
        return Plan(per_step, train.tokens_per_step, train.num_train_epochs, train.max_steps, seed)

    def judged(self, model: TreeModel, trees: Sequence[Tree]) -> Batches:
        """This rank's part of held-out trees, laid out anew at each evaluation, so that they need no memory."""
        rows = self.rows(model)
        return rows.lazily(trees) if trees else Batches(lambda at: rows.lazily(trees)[at], 0)

    def dataset_feed(self, model: TreeModel, trees: Sequence[Tree], annotate: Any = None) -> DatasetFeed:
        return DatasetFeed(trees, self.rows(model), annotate=annotate, **asdict(self.plan))


def _asked(record: Record) -> tuple[Messages, str | None] | None:
    """The messages before the last answer of a record, and that answer."""
    if record.kind == "chat" and record.messages[-1].role == ASSISTANT:
        return record.messages[:-1], record.messages[-1].content
    if record.kind == "prompt":
        return record.prompt, record.reference
    if record.kind in ("preference", "unpaired") and record.prompt:
        best = record.answers[0]  # of an answer that is called bad there is nothing to show as wanted
        return record.prompt, None if best.label is False else best.messages[-1].content
    return None
