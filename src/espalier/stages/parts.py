"""What a stage gives to the one loop, and what several objectives are made of.

A stage (`stage.Stage`) builds `Parts` from a `Setup`. It knows nothing of launching, checkpoints or tracking, and no
other stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from espalier.data.steps.feed import Feed
from espalier.engine.step import Objective
from espalier.engine.track import Numbers
from espalier.models.forward import Outputs, TreeModel, Want
from espalier.rollout.asked import Ask
from espalier.rollout.experience import AnswerGroup
from espalier.trees import Batch, Tree

Units = tuple[Tensor, Tensor]
"""(m,) numerators and (m,) denominators of m independent units, such as a record's nll and its tokens; the
held-out number is the ratio of their sums, and its standard error follows from their spread."""


@dataclass(frozen=True)
class HeldOut:
    """The number by which a stage is judged on data that it does not see."""

    name: str
    better: Literal["higher", "lower"]


@dataclass
class Live:
    """The prepared module, for what a stage does with it outside of the loop.

    Attributes:
        module: what accelerate has made of `Parts.trained`.
        accelerator: of the run.
        sampler: a whole copy of the policy for sampling where the module's weights are sharded, else None.
    """

    module: nn.Module
    accelerator: Accelerator
    sampler: nn.Module | None = None

    @torch.no_grad()
    def run(self, batch: Batch, want: Want) -> Outputs:
        """One forward without gradients and without dropout."""
        with self.evaluating():
            outputs: Outputs = self.module(batch, want)
            return outputs

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(training)

    @property
    def inner(self) -> Any:
        """The module without accelerate's wrapper."""
        return self.accelerator.unwrap_model(self.module, keep_torch_compile=False)


class Controller(Protocol):
    """Something that changes during the run and must be in the checkpoint (JSON)."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Watcher(Controller, Protocol):
    """Looks at the evaluations of a run together, and says in words what is wrong; its state is in the checkpoint.

    Attributes:
        warnings: {"step", "kind", "text"} of each so far, in order.
    """

    warnings: list[dict[str, Any]]

    def look(self, step: int, over: bool) -> list[str]:
        """After the evaluation of a step, the last one where `over`: the warnings that are new."""


@dataclass(frozen=True)
class Pace:
    """How fast a part of the trained module learns, where that is not as the options of the training say.

    AdamW takes each parameter by itself, so a part with a pace of its own learns as if it had an optimiser of its own.

    Attributes:
        learning_rate: the highest; None: as the rest.
        warmup_steps: in which it rises, as a count or as a share of all; None: as the rest.
        max_grad_norm: of this part's gradient alone; None: as the rest, but alone.
        waits: steps at the start in which it stays as it is, as a count or as a share of all.
    """

    learning_rate: float | None = None
    warmup_steps: int | float | None = None
    max_grad_norm: float | None = None
    waits: int | float = 0


@dataclass(frozen=True)
class SamplePrompt:
    """A held-out prompt whose answer is shown at each evaluation."""

    text: str
    tokens: list[int]
    reference: str | None = None


@dataclass(frozen=True)
class Pieces:
    """What a stage that samples does in a rollout, one piece after the other; its feed does all of them in a row.

    Attributes:
        prompts: to be sampled from, by place.
        held_out: prompts that are not trained on.
        answered: (places of prompts, seed) to a group of answers for each.
        scored: groups to trees with their ``scores`` (B,), without the answers that have none.
        measured: the same with what the models say of each token, (B, A).
        compared: the same with ``advantages``, and whatever else the loss reads.
        unlike: what the feed does beyond this, in words; "" where it does nothing else.
    """

    prompts: Sequence[Ask]
    held_out: Sequence[Ask]
    answered: Callable[[Live, Sequence[int], Sequence[int]], list[AnswerGroup]]
    scored: Callable[[Live, list[AnswerGroup]], list[Tree]]
    measured: Callable[[Live, list[Tree]], list[Tree]]
    compared: Callable[[list[Tree]], list[Tree]]
    unlike: str = ""


@dataclass
class Parts:
    """What a stage gives to the loop.

    Attributes:
        trained: the module that is trained, ``(batch, want) -> Outputs``.
        main: the model in it that the stage is for; saved as ``model/``.
        objective: what is learned.
        feed: makes the feed once the module is prepared.
        validate: held-out units and further held-out numbers, from the prepared module.
        held_out: what the units are called.
        sample_prompts: shown at each evaluation.
        controllers: by name, for the checkpoint.
        watch: is asked after each evaluation whether something is wrong.
        after_step: bookkeeping after each optimiser step, by its number; the gradients are still there.
        paces: by the name of a part of `trained`; the others learn as the options say.
        learns: whether the loss of a micro-batch depends on the weights at all; steps in which none does are not taken.
        averages: modules outside of `trained` whose weights change too; they go into the checkpoint.
        settle: what is measured of the weights that will be saved, before they are.
        also_saved: further models by folder name (a critic, a moving average), saved beside ``model/``.
        pieces: of a rollout, where the stage samples.
    """

    trained: nn.Module
    main: TreeModel
    objective: Objective
    feed: Callable[[Live], Feed]
    validate: Callable[[Live], tuple[Units | None, Numbers]]
    held_out: HeldOut
    sample_prompts: Sequence[SamplePrompt] = ()
    controllers: dict[str, Controller] = field(default_factory=dict)
    watch: Watcher | None = None
    after_step: Callable[[Live, int], None] | None = None
    paces: dict[str, Pace] = field(default_factory=dict)
    learns: Callable[[Batch], bool] = lambda batch: True
    averages: dict[str, nn.Module] = field(default_factory=dict)
    settle: Callable[[Live], None] | None = None
    also_saved: dict[str, TreeModel] = field(default_factory=dict)
    pieces: Pieces | None = None


class Judge(Protocol):
    """An objective that can also be judged on held-out batches."""

    want: Want

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]: ...

    def judge(self, outputs: Outputs, batch: Batch) -> Units: ...


def validator(judge: Judge, batches: Sequence[Batch]) -> Callable[[Live], tuple[Units | None, Numbers]]:
    """Judge the held-out micro-batches of this rank: units, and the objective's own numbers."""

    def validate(live: Live) -> tuple[Units | None, Numbers]:
        units: list[Units] = []
        sums: dict[str, list[float]] = {}
        for batch in batches:
            outputs = live.run(batch, judge.want)
            if batch.weight:
                units.append(judge.judge(outputs, batch))
            # A rank that has only fillers names the same numbers as the others, and adds nothing to them.
            for name, (total, weight) in judge.loss(outputs, batch)[1].items():
                total_weight = sums.setdefault(name, [0.0, 0.0])
                if batch.weight:
                    total_weight[0] += float(total)
                    total_weight[1] += float(weight)
        numbers: Numbers = {name: (total, weight) for name, (total, weight) in sums.items()}
        if not units:
            return None, numbers
        return (torch.cat([n for n, _ in units]).cpu(), torch.cat([d for _, d in units]).cpu()), numbers

    return validate
