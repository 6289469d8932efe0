"""Sampling with a cache: prompts in, tokens and their logprobs out; what is sampled is what is trained.

Every row draws from uniform numbers of its own, made from its seed alone, so that an answer does not
depend on which others were sampled with it, in which batch, or on which rank.

B rows (P prompts times C copies), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from espalier.models.attention import decoding_mask
from espalier.models.forward import Traits, tapped
from espalier.models.memory import Memory
from espalier.trees import Tree, lay_out_tree


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: at least 1.
        temperature: 0 takes the likeliest token; 1 samples from the model's own distribution.
        top_p: the smallest set of likeliest tokens with at least this mass, in (0, 1]; 1 is all.
        top_k: only so many likeliest tokens; 0 is all.
        stop: tokens that end an answer; the one that does is part of it.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[int, ...] = ()


@dataclass
class Sampled:
    """One answer.

    Attributes:
        tokens: what was sampled, the stop token included.
        logprobs: of each, under the distribution at this temperature before top_p and top_k.
        ended: whether a stop token ended it, and not the limit.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False


def sample(
    lm: nn.Module,
    traits: Traits,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    copies: int = 1,
    seeds: Sequence[int] = (),
    rows: int = 64,
) -> list[list[Sampled]]:
    """Sample `copies` answers to each prompt; ``result[i][c]`` is copy c of prompt i.

    Args:
        lm: a causal language model, left in the mode it is in.
        traits: from the probe.
        prompts: token ids, none empty.
        sampling: how.
        copies: answers a prompt.
        seeds: one for each prompt; () seeds by the prompt's place.
        rows: how many answers are sampled at a time.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found: list[list[Sampled]] = [[] for _ in prompts]
    size = max(1, rows // copies)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        answers = [Sampled() for _ in range(len(chosen) * copies)]
        numbers = [seeds[i] if seeds else i for i in chosen]
        for row, token, logprob, ended in decode(
            lm, traits, [prompts[i] for i in chosen], sampling, copies=copies, seeds=numbers
        ):
            answers[row].tokens.append(token)
            answers[row].logprobs.append(logprob)
            answers[row].ended = ended
        for place, i in enumerate(chosen):
            found[i] = answers[place * copies : (place + 1) * copies]
    return found


@torch.no_grad()
def decode(
    lm: nn.Module,
    traits: Traits,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    copies: int = 1,
    seeds: Sequence[int] = (0,),
) -> Iterator[tuple[int, int, float, bool]]:
    """Yield (row, token, logprob, whether it ends the answer) as the tokens come; row = prompt * C + copy."""
    training = lm.training
    lm.eval()
    try:
        yield from _decode(lm, traits, prompts, sampling, copies, seeds)
    finally:
        lm.train(training)


def _decode(
    lm: nn.Module,
    traits: Traits,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    copies: int,
    seeds: Sequence[int],
) -> Iterator[tuple[int, int, float, bool]]:
    device = next(lm.parameters()).device
    shared = traits.method == "pieces" or (traits.method == "blocks" and device.type == "cuda")
    windows = [w for w in traits.windows.values() if w is not None]
    longest = max(map(len, prompts)) + sampling.max_new_tokens
    kind = _Shared if shared and all(w >= longest for w in windows) else _Plain
    state = kind(lm, traits, prompts, copies, sampling.max_new_tokens)
    uniforms = _uniforms(seeds, copies, sampling.max_new_tokens).to(device)
    stop = torch.tensor(sampling.stop, device=device)
    names = list(range(len(prompts) * copies))  # the caller's number of each row
    alive = torch.ones(len(names), dtype=torch.bool)
    logits = state.prompt_logits()
    for step in range(sampling.max_new_tokens):
        tokens, logprobs = draw(logits, uniforms[:, step], sampling)
        ends = torch.isin(tokens, stop) if len(sampling.stop) else torch.zeros_like(tokens, dtype=torch.bool)
        said = zip(names, tokens.tolist(), logprobs.tolist(), ends.tolist(), alive.tolist(), strict=True)
        for name, token, logprob, end, living in said:
            if living:
                yield name, token, logprob, end
        alive &= ~ends.cpu()
        if not alive.any() or step + 1 == sampling.max_new_tokens:
            return
        rows = state.shrink(alive)
        if rows is not None:
            kept = rows.to(device)
            tokens, uniforms = tokens[kept], uniforms[kept]
            alive, names = alive[rows] & _first_of(rows), [names[i] for i in rows.tolist()]
        logits = state.next_logits(tokens, step)


def _first_of(rows: Tensor) -> Tensor:
    """False where a row stands in again for one that is missing."""
    seen: set[int] = set()
    return torch.tensor([not (i in seen or seen.add(i)) for i in rows.tolist()])  # type: ignore[func-returns-value]


def _uniforms(seeds: Sequence[int], copies: int, steps: int) -> Tensor:
    """(P * C, steps) in [0, 1): the numbers of a row follow from its prompt's seed and its copy alone."""
    rows = []
    for seed in seeds:
        maker = torch.Generator().manual_seed(seed)
        # One block a copy, so that the first copies are the same however many there are.
        rows += [torch.rand(steps, generator=maker, dtype=torch.float64) for _ in range(copies)]
    return torch.stack(rows)


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token a row by the inverse of its distribution's sums, with its logprob before truncation.

    Args:
        logits: (B, V).
        uniforms: (B,) in [0, 1).

    Returns:
        tokens (B,) int64 and logprobs (B,) float32. At temperature 0 the logprob is the model's own.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    logprobs = (logits / sampling.temperature).log_softmax(-1)
    probs = logprobs.exp()
    if sampling.top_k or sampling.top_p < 1:
        probs = _truncated(probs, sampling.top_p, sampling.top_k)
    sums = probs.cumsum(-1, dtype=torch.float64)
    # Above the last sum only by rounding; a token without probability is never taken.
    target = (uniforms.double() * sums[:, -1])[:, None].clamp(max=sums[:, -1:].nextafter(torch.zeros(())))
    tokens = torch.searchsorted(sums, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _truncated(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """The same probabilities with those outside of the top set to 0 (not renormalised)."""
    count = min(top_k or probs.shape[1], probs.shape[1])
    best, at = probs.topk(count, dim=-1)
    if top_p < 1:
        before = best.cumsum(-1) - best  # the likeliest always stays
        best = best.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probs).scatter_(1, at, best)


class _Shared:
    """Prompts read once in one row as trees; our own memory of keys and values."""

    def __init__(
        self, lm: nn.Module, traits: Traits, prompts: Sequence[Sequence[int]], copies: int, room: int
    ) -> None:
        config: Any = lm.config
        self.lm, self.traits, self.prompts, self.copies = lm, traits, prompts, copies
        self.memory = Memory(
            int(config.get_text_config().num_hidden_layers), [len(p) for p in prompts], copies, room
        )
        self.dtype = next(lm.parameters()).dtype
        self.device = next(lm.parameters()).device

    def prompt_logits(self) -> Tensor:
        from espalier.models.attention import attention_mask

        trees = [Tree.from_path(p, [False] * len(p)) for p in self.prompts]
        batch = lay_out_tree(trees).to(self.device)
        mask = attention_mask(batch, self.traits.method, self.dtype, self.traits.windows)
        with tapped(self.lm.get_output_embeddings(), batch.leaf_at):  # type: ignore[operator]
            logits = self.lm(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention_mask=mask,
                past_key_values=self.memory,
                use_cache=True,
            ).logits[0]
        self.memory.start(self.dtype, self.device)
        return logits.repeat_interleave(self.copies, 0)

    def next_logits(self, tokens: Tensor, step: int) -> Tensor:
        memory = self.memory
        lengths = torch.tensor(memory.lengths, device=self.device).repeat_interleave(memory.copies)
        logits = self.lm(
            input_ids=tokens[:, None],
            position_ids=(lengths + step)[:, None],
            attention_mask=decoding_mask(memory, self.dtype, self.device),
            past_key_values=memory,
            use_cache=True,
        ).logits[:, -1]
        memory.step += 1
        return logits

    def shrink(self, alive: Tensor) -> Tensor | None:
        """Drop finished rows when that saves a quarter or more; returns the old rows that stay, in order.

        The rows stay a rectangle of prompts by copies: a missing copy is stood in for by another row.
        """
        grid = alive.view(-1, self.memory.copies)
        prompts = grid.any(1).nonzero()[:, 0]
        copies = int(grid.sum(1).max())
        if len(prompts) * copies > 0.75 * len(alive):
            return None
        rows = []
        for prompt in prompts.tolist():
            living = grid[prompt].nonzero()[:, 0].tolist()
            filled = (living * copies)[:copies] if living else []
            rows += [prompt * self.memory.copies + c for c in filled]
        kept = torch.tensor(rows)
        self.memory.keep(prompts.to(self.device), kept.to(self.device), copies)
        return kept


class _Plain:
    """Any other architecture: left-padded rows and transformers' own cache."""

    def __init__(
        self, lm: nn.Module, traits: Traits, prompts: Sequence[Sequence[int]], copies: int, room: int
    ) -> None:
        self.lm, self.cache = lm, None
        device = next(lm.parameters()).device
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        self.ids = ids.repeat_interleave(copies, 0).to(device)
        self.mask = mask.repeat_interleave(copies, 0).to(device)

    def prompt_logits(self) -> Tensor:
        return self._run(self.ids, (self.mask.cumsum(1) - 1).clamp(min=0))

    def next_logits(self, tokens: Tensor, step: int) -> Tensor:
        positions = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        return self._run(tokens[:, None], positions)

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        import inspect

        takes_positions = "position_ids" in inspect.signature(self.lm.forward).parameters
        extra = {"position_ids": positions} if takes_positions else {}
        out: Any = self.lm(
            input_ids=ids, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **extra
        )
        self.cache = out.past_key_values
        return out.logits[:, -1]

    def shrink(self, alive: Tensor) -> Tensor | None:
        return None
