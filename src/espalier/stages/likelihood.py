"""What pretraining and SFT share: the likelihood of trained tokens, and what may be changed about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from espalier.config.option import Options, option
from espalier.data.preflight.findings import HELD_OUT
from espalier.engine.track import Numbers
from espalier.errors import UserError
from espalier.maths.losses import nll
from espalier.maths.reduce import masked_sum
from espalier.models.encoder_decoder import is_encoder_decoder
from espalier.models.forward import Outputs, Want
from espalier.stages.parts import HeldOut, Parts, Units, validator
from espalier.stages.setup import Setup
from espalier.trees import Batch


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(Options):
    """The loss of pretraining and SFT; held-out numbers are always of the plain one."""

    label_smoothing: float = option(
        0.0, "The share of each token's target that is spread over the whole vocabulary.", min=0, below=1
    )
    use_dft_loss: bool = option(
        False, "Weigh each token's loss by its own probability (dynamic fine-tuning, Wu et al. 2025)."
    )
    neftune_noise_alpha: float = option(
        0.0, "Noise on the input embeddings in training, alpha / sqrt(length x size); 5 is usual.", min=0
    )

    def problems(self) -> list[str]:
        if self.label_smoothing and self.use_dft_loss:
            return ["`label_smoothing` and `use_dft_loss` both change the loss of a token. Remove one."]
        return []


class NextToken:
    """Maximum likelihood of the trained tokens.

    Args:
        label_smoothing: e; the loss of a token is (1 - e) of its own and e of the mean over the vocabulary (Szegedy
            et al. 2016, section 7).
        by_probability: weigh each token's loss by its probability, without a gradient through it (Wu et al. 2025,
            "On the Generalization of SFT", eq. 9).
    """

    def __init__(self, label_smoothing: float = 0.0, by_probability: bool = False) -> None:
        self.want, self._by_probability = Want(label_smoothing=label_smoothing), by_probability

    def count(self, batch: Batch) -> float:
        return float(batch.n_trained)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Numbers]:
        assert outputs.logprobs is not None
        each = nll(outputs.logprobs)
        if self._by_probability:
            each = each * outputs.logprobs.detach().exp()
        total = masked_sum(each, batch.mask)
        return total, {"loss": (total.detach(), batch.n_trained)}

    def check(self, first: dict[str, float]) -> None:
        """Any loss is possible at the first step of a model that has been trained before."""

    def judge(self, outputs: Outputs, batch: Batch) -> Units:
        """The nll and the number of trained tokens of each branch."""
        assert outputs.logprobs is not None
        mask = batch.mask
        return masked_sum(nll(outputs.logprobs), mask, 1), mask.sum(1)


def likelihood(setup: Setup, reads: str, **encoding: Any) -> Parts:
    """The parts of a stage whose records are of the kind `reads` and whose trained tokens are to become likelier;
    `encoding` as in `Datasets.encoder`."""
    options = setup.option(LikelihoodOptions)
    records, held_out = setup.records(reads)
    train, judged = setup.trees(records, **encoding), setup.trees(held_out, HELD_OUT, **encoding)
    model = setup.load_policy()
    if options.neftune_noise_alpha and is_encoder_decoder(model.lm):
        raise UserError(
            "`neftune_noise_alpha` is for models of one stack; this one encodes its question apart. Remove it."
        )
    model.noise_alpha = options.neftune_noise_alpha
    return Parts(
        trained=model,
        main=model,
        objective=NextToken(options.label_smoothing, options.use_dft_loss),
        feed=lambda live: setup.dataset_feed(model, train),
        validate=validator(NextToken(), setup.judged(model, judged)),
        held_out=HeldOut("loss", "lower"),
        sample_prompts=setup.sample_prompts(held_out or records) if reads == "chat" else (),
    )
