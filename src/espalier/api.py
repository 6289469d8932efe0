"""The Python interface for people who use models: load, score, generate. Training is `espalier.run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from espalier.data.encode.encoding import leading
from espalier.errors import UserError
from espalier.exam.answers.choose import Chooser, ExamPrompt
from espalier.exam.task import Candidate
from espalier.models import load
from espalier.models.forward import Traits, TreeModel
from espalier.models.open import open_model
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample
from espalier.models.tokenizers.marks import around_prompt, marked

_traits: WeakKeyDictionary[nn.Module, Traits] = WeakKeyDictionary()


@dataclass(frozen=True)
class Generation:
    """One sampled answer: its text, tokens, their logprobs, and whether it ended by itself."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    ended: bool


def load_model(
    path: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    rope_scaling: load.Scaling | None = None,
) -> tuple[nn.Module, Any]:
    """A model in the Hugging Face calling convention, and its tokenizer (None where the folder has none).

    Args:
        path: a folder or a hub id. An adapter's folder is merged into its base; virtual tokens stay on top of it, and
            PEFT's conventions hold then: ``logits`` of prompt tuning begin with those of the virtual tokens.
        dtype, device, trust_remote_code, allow_pickle, rope_scaling: as in `models.open.open_model`.
    """
    opened = open_model(
        path,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        rope_scaling=rope_scaling,
    )
    return opened.lm, opened.tokenizer


def score(
    model: nn.Module, tokenizer: Any, prompt: str, candidates: Sequence[str]
) -> list[tuple[float, int]]:
    """Sum of the logprobs of each candidate after the prompt, and how many tokens it has; exact.

    The prompt is computed once for all candidates. Models that find their prompt's end by marks (T5, BART, GLM,
    ChatGLM-6B) get them where the prompt has none.
    """
    chooser = Chooser(TreeModel(model, _probed(model)).eval(), tokenizer)
    prompt = marked(prompt, around_prompt(model, tokenizer))
    ((scored,), _) = chooser.score([ExamPrompt("", prompt, tuple(Candidate(text) for text in candidates))])
    return list(zip(scored.scores, scored.tokens, strict=True))


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop: Sequence[int] = (),
    copies: int = 1,
    seed: int = 0,
) -> list[list[Generation]]:
    """Sample `copies` answers to each prompt; ``result[i][c]`` is copy c of prompt i. Marks as in `score`.

    Args:
        temperature: 0 takes the likeliest token.
        stop: further ids that end an answer, besides the model's own.

    Raises:
        UserError: a prompt without tokens.
    """
    ends = tuple(sorted({*load.end_tokens(model, tokenizer), *stop}))
    around = around_prompt(model, tokenizer)
    prompts = [marked(prompt, around) for prompt in prompts]
    # What some tokenizers put behind a text (an end token) would end the prompt.
    ids = [leading(tokenizer, t) + tokenizer.encode(t, add_special_tokens=False) for t in prompts]
    for i, tokens in enumerate(ids):
        if not tokens:
            raise UserError(
                f"prompt {i} has no tokens, and a model goes on from at least one. Give it a text."
            )
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, ends)
    seeds = [seed * 1_000_003 + i for i in range(len(ids))]
    samples = sample(model, _probed(model), ids, sampling, copies=copies, seeds=seeds)
    return [
        [
            Generation(tokenizer.decode(a.tokens, skip_special_tokens=True), a.tokens, a.logprobs, a.ended)
            for a in answers
        ]
        for answers in samples
    ]


def _probed(model: nn.Module) -> Traits:
    if model not in _traits:
        _traits[model] = probe(model)
    return _traits[model]
