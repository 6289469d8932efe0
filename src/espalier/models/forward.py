"""THE forward: a Batch in, what is known about its trained tokens and branches out.

R rows, T tokens a row, N trained tokens, B branches, A trained tokens of the longest branch, d hidden.

The language-model head runs on the parents of trained tokens only. A hook on the head's input takes the
hidden states there, which works for every architecture and both layouts; where the model does something
to the logits after its head (a soft-cap, a scale), its own head is kept and fed those rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.models.adapters.freezing import freeze_head
from espalier.models.adapters.virtual import Virtual, virtual_tokens
from espalier.models.attention import Method, attention_mask
from espalier.models.blanks import channels
from espalier.models.frozen_trunk import FrozenTrunk
from espalier.models.heads import ScalarHead, chunked_logprobs, label_logprobs, shared_logprobs
from espalier.models.neftune import noisy_embeddings
from espalier.models.trunk import Trunk
from espalier.trees.batch import Batch, under_root, unrolled
from espalier.trees.tree import BLANK


@dataclass(frozen=True)
class Want:
    """What to compute; nothing else costs anything.

    Attributes:
        logprobs: of the trained tokens.
        entropy: of the distributions that the trained tokens come from.
        values: of the states before the trained tokens (needs a scalar head).
        scores: of the branches, read at their leaves (needs a scalar head).
        greedy: whether each trained token is the likeliest; without gradients only.
        temperature: of logprobs and entropy, > 0; or (B,), of each branch.
        label_smoothing: the share of each logprob that is the mean over the vocabulary; for a loss.
    """

    logprobs: bool = True
    entropy: bool = False
    values: bool = False
    scores: bool = False
    greedy: bool = False
    temperature: float | Tensor = 1.0
    label_smoothing: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether logprobs are the model's own, and nothing else of its distributions is wanted."""
        own = not isinstance(self.temperature, Tensor) and self.temperature == 1.0
        return own and not self.entropy and not self.label_smoothing


@dataclass(frozen=True)
class Outputs:
    """What was asked for, in float32: (B, A) grids with zeros where no token is, and (B,) scores.

    `greedy` is a grid of 1 and 0.
    """

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    scores: Tensor | None = None
    greedy: Tensor | None = None


@dataclass(frozen=True)
class Traits:
    """What the probe found out about a model.

    Attributes:
        method: how it takes trees; "padded" when it cannot.
        plain_head: whether its logits are its head applied to the hidden states and nothing more.
        windows: sliding windows by layer type, see `espalier.models.attention.attention_mask`.
        reason: one line for people.
    """

    method: Method
    plain_head: bool
    windows: dict[str, int | None]
    reason: str

    @property
    def takes_trees(self) -> bool:
        return self.method != "padded"


class TreeModel(nn.Module):
    """A Hugging Face causal language model that takes a Batch, with an optional scalar head.

    Args:
        lm: the model, wrapped by PEFT or not.
        traits: from `espalier.models.probe.probe`.
        scalar_head: for values and scores.

    Attributes:
        noise_alpha: NEFTune's alpha in training mode; 0: no noise (`noisy_embeddings`).
        frozen_trunk: the blocks that it has in common with other models; None: it runs by itself.
    """

    noise_alpha = 0.0
    frozen_trunk: FrozenTrunk | None = None

    def __init__(self, lm: nn.Module, traits: Traits, scalar_head: ScalarHead | None = None) -> None:
        super().__init__()
        self.lm = lm
        self.traits = traits
        self.scalar_head = scalar_head

    def fitting(self, batch: Batch) -> Batch:
        """The batch in rows that this model takes; for one that was laid out for another model."""
        return batch if self.traits.takes_trees else unrolled(batch)

    @property
    def score_at(self) -> str | None:
        """Where the scalar head says that answers are scored."""
        return None if self.scalar_head is None else self.scalar_head.score_at

    @property
    def score_moments(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the scores of answers that the scalar head was not trained on, where known."""
        return None if self.scalar_head is None else self.scalar_head.moments

    def without_lm_head(self) -> TreeModel:
        """Freeze an output head of its own, which a model that only gives numbers does not use."""
        freeze_head(self.lm)
        return self

    def forward(self, batch: Batch, want: Want, trunk: Trunk | None = None) -> Outputs:
        """Run the model once over the batch; `trunk`: what its one row goes on from, or what it is to fill.

        Raises:
            ValueError: values or scores are wanted from a model without a scalar head; the rows hold trees, which
                this model cannot take (see `fitting`).
        """
        if batch.attention_mask is None and not self.traits.takes_trees:
            raise ValueError(f"a batch of trees came to a model that takes none ({self.traits.reason})")
        if (want.values or want.scores) and self.scalar_head is None:
            raise ValueError("values and scores need a scalar head, and this model has none")
        head = self.lm.get_output_embeddings()  # type: ignore[operator]
        virtual = virtual_tokens(self.lm)
        asked, rooted = batch, batch if virtual is None else under_root(batch, virtual.length)
        if virtual is not None and not virtual.ahead:
            batch = rooted
        through_model = want.logprobs and not self.traits.plain_head
        noise: AbstractContextManager[None] = nullcontext()
        if self.training and self.noise_alpha:
            noise = noisy_embeddings(self.lm, asked, self.noise_alpha)
        with noise, tapped(head, batch.read_at if through_model else None) as taken:
            logits = self._run(asked, rooted, virtual, trunk).logits
        hidden = taken[0].flatten(0, -2)
        logprobs = entropy = values = scores = greedy = None
        if want.logprobs and len(batch.labels):
            temperature = want.temperature
            if isinstance(temperature, Tensor):
                temperature = temperature[batch.branch]
            if through_model:
                logits = logits.flatten(0, -2)
                of_labels = label_logprobs(
                    logits, batch.labels, temperature, want.entropy, want.label_smoothing
                )
                greedy = logits.argmax(-1) == batch.labels if want.greedy else None
            elif not torch.is_grad_enabled() and want.plain:
                label_logprob, greedy = shared_logprobs(head, hidden, batch.read_at, batch.labels)
                of_labels = label_logprob, None
            else:
                at = hidden[batch.read_at]
                of_labels = chunked_logprobs(
                    head, at, batch.labels, temperature, want.entropy, want.label_smoothing
                )
            logprobs = batch.grid(of_labels[0])
            entropy = None if of_labels[1] is None else batch.grid(of_labels[1])
            greedy = batch.grid(greedy.float()) if want.greedy and greedy is not None else None
        elif want.logprobs:
            logprobs = hidden.new_zeros(batch.shape)
        if want.values and self.scalar_head is not None:
            values = batch.grid(self.scalar_head(hidden[batch.read_at]))
        if want.scores and self.scalar_head is not None:
            scores = self.scalar_head(hidden[batch.leaf_at])
        return Outputs(logprobs, entropy, values, scores, greedy)

    def _run(self, batch: Batch, rooted: Batch, virtual: Virtual | None, trunk: Trunk | None) -> Any:
        """The model's own output; `rooted` is the batch with its virtual tokens, if there are any."""
        assert virtual is None or trunk is None, "a trunk has no virtual tokens before it"
        ahead = 0 if virtual is None else virtual.ahead
        dtype = torch.get_autocast_dtype(batch.input_ids.device.type)
        if not torch.is_autocast_enabled(batch.input_ids.device.type):
            dtype = next(self.lm.parameters()).dtype
        if rooted.attention_mask is not None:
            mask: Any = rooted.attention_mask.long()
        else:
            mask = attention_mask(rooted, self.traits.method, dtype, self.traits.windows, trunk, ahead)
        lm: Any = self.lm
        given: dict[str, Any] = {"input_ids": batch.input_ids}
        past: Any = trunk
        if virtual is not None:
            lm = lm.base_model
            if virtual.layers is not None:
                past = virtual.cache(len(batch.input_ids), dtype)
            else:
                given = {"inputs_embeds": virtual.before(lm.get_input_embeddings()(batch.input_ids))}
        kept = {} if past is None else {"past_key_values": past}
        shared: AbstractContextManager[dict[str, Any]] = nullcontext(given)
        noisy = self.training and self.noise_alpha
        positions = rooted.position_ids[:, ahead:]
        if BLANK in batch.extras:
            assert virtual is None, "virtual tokens have no place among blanks"
            positions = channels(batch)
        if self.frozen_trunk is not None and virtual is None and trunk is None and not noisy:
            shared = self.frozen_trunk.serving(self.lm, batch.input_ids)
        with shared as given:
            return lm(
                **given,
                position_ids=positions,
                attention_mask=mask,
                use_cache=past is not None,
                **kept,
            )


@contextmanager
def tapped(head: nn.Module, read_at: Tensor | None) -> Iterator[list[Tensor]]:
    """Take the hidden states (R, T, d) at the door of `head`; let in only the rows `read_at`, or just one."""
    taken: list[Tensor] = []

    def take(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        taken.append(hidden)
        rows = hidden.flatten(0, -2)
        return (rows[:1][None] if read_at is None else rows[read_at][None],)

    # Before the hooks of an engine that gathers weights: what it puts around the head's input is not passed by others.
    handle = head.register_forward_pre_hook(take, prepend=True)
    try:
        yield taken
    finally:
        handle.remove()
