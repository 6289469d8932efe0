"""Maximum likelihood of texts: what pretraining and supervised fine-tuning are, each of its own kind of records."""

from __future__ import annotations

from torch import Tensor

from espalier.data.preflight.findings import HELD_OUT
from espalier.engine.track import Numbers
from espalier.maths.losses import nll
from espalier.maths.reduce import masked_sum
from espalier.models.forward import Outputs, Want
from espalier.stages.parts import HeldOut, Parts, Units, validator
from espalier.stages.setup import Setup
from espalier.trees import Batch


class NextToken:
    """Maximum likelihood of the trained tokens."""

    want = Want()

    def count(self, batch: Batch) -> float:
        return float(batch.n_trained)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        assert outputs.logprobs is not None
        total = masked_sum(nll(outputs.logprobs), batch.mask)
        return total, {"loss": (total.detach(), batch.n_trained)}

    def check(self, first: dict[str, float]) -> None:
        """Any loss is possible at the first step of a model that has been trained before."""

    def judge(self, outputs: Outputs, batch: Batch) -> Units:
        """The nll and the number of trained tokens of each branch."""
        assert outputs.logprobs is not None
        mask = batch.mask
        return masked_sum(nll(outputs.logprobs), mask, 1), mask.sum(1)


def next_token(setup: Setup, kind: str) -> Parts:
    """The parts of a stage that learns records of a kind: "text", or "chat", whose answers are also sampled."""
    model = setup.load_policy()
    records, held_out = setup.records(kind)
    train, judged = setup.trees(records), setup.trees(held_out, HELD_OUT)
    return Parts(
        trained=model,
        main=model,
        objective=NextToken(),
        feed=lambda live: setup.dataset_feed(model, train),
        validate=validator(NextToken(), setup.judged(model, judged)),
        held_out=HeldOut("loss", "lower"),
        sample_prompts=setup.sample_prompts(held_out or records) if kind == "chat" else (),
    )
