"""Sampling against transformers' own, against a full forward, and against the distribution itself."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from espalier.models.forward import TreeModel, Want
from espalier.models.memory import Memory
from espalier.models.probe import probe
from espalier.models.sampling.generate import Completion, Sampling, decode, draw, sample
from espalier.trees import Tree, lay_out_tree

Tiny = Callable[..., nn.Module]
NAMES = ("llama", "qwen2", "qwen3", "gpt2", "opt", "bloom", "falcon", "mistral", "gemma2")
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40], [70, 71, 72], [5, 6, 7, 8, 33, 60, 61, 62, 63, 64, 65]]
MANY = tuple(range(3, 16))
"""Stop tokens enough for rows to end at different times, so that they are dropped on the way."""


def by_transformers(lm: nn.Module, prompt: list[int], n: int, stop: tuple[int, ...]) -> list[int]:
    out = lm.generate(  # type: ignore[operator]
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=n,
        eos_token_id=list(stop) or None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def full_logprobs(lm: nn.Module, prompt: list[int], tokens: list[int], temperature: float) -> Tensor:
    logits = lm(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0]
    logprobs = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_greedy_is_transformers_greedy(tiny: Tiny, name: str) -> None:
    plain = tiny(name)
    plain.generation_config.eos_token_id = None
    lm = copy.deepcopy(plain)
    traits = probe(lm)
    free = [by_transformers(plain, prompt, 12, ()) for prompt in PROMPTS]
    # A token said in the middle by one, so that the answers end at different places.
    for stop in ((), (free[0][5], free[2][2])):
        truth = [by_transformers(plain, prompt, 12, stop) for prompt in PROMPTS]
        found = sample(lm, traits, PROMPTS, Sampling(12, temperature=0, stop=stop))
        assert [answers[0].tokens for answers in found] == truth
        for (answer,), want in zip(found, truth, strict=True):
            assert answer.ended == (want[-1] in stop)
    assert len({len(t) for t in truth}) > 1, "the stop token was of no effect"


@pytest.mark.parametrize("name", NAMES)
def test_logprobs_are_those_of_a_full_forward_also_after_rows_are_dropped(
    tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny(name)
    lm = copy.deepcopy(plain)
    traits = probe(lm)
    dropped: list[int] = []
    keep = Memory.keep
    monkeypatch.setattr(
        Memory, "keep", lambda self, rows, held: (dropped.append(len(rows)), keep(self, rows, held))[1]
    )
    found = sample(lm, traits, PROMPTS, Sampling(16, temperature=0.9, stop=MANY), copies=3)
    lengths = set()
    for prompt, answers in zip(PROMPTS, found, strict=True):
        assert len(answers) == 3
        for answer in answers:
            truth = full_logprobs(plain, prompt, answer.tokens, 0.9)
            torch.testing.assert_close(torch.tensor(answer.logprobs), truth, rtol=0, atol=2e-5)
            assert answer.ended == (answer.tokens[-1] in MANY)
            assert not set(answer.tokens[:-1]) & set(MANY)
            assert answer.ended or len(answer.tokens) == 16
            lengths.add(len(answer.tokens))
    assert len(lengths) > 2
    if traits.method == "pieces" and name != "mistral":
        assert dropped, "no row was dropped, so nothing was tested"


def said(found: list[list[Completion]]) -> list[list[list[int]]]:
    return [[answer.tokens for answer in answers] for answers in found]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_an_answer_depends_on_its_prompt_and_seed_alone(tiny: Tiny, name: str) -> None:
    lm = tiny(name)
    traits = probe(lm)
    sampling = Sampling(10, stop=MANY)
    seeds = [11, 12, 13, 14]
    truth = said(sample(lm, traits, PROMPTS, sampling, copies=4, seeds=seeds))
    assert len({tuple(tokens) for answers in truth for tokens in answers}) > 8
    for rows in (1, 4, 9):
        assert said(sample(lm, traits, PROMPTS, sampling, copies=4, seeds=seeds, rows=rows)) == truth
    fewer = said(sample(lm, traits, PROMPTS, sampling, copies=2, seeds=seeds))
    assert fewer == [answers[:2] for answers in truth]
    back = said(sample(lm, traits, PROMPTS[::-1], sampling, copies=4, seeds=seeds[::-1]))
    assert back[::-1] == truth
    for prompt, seed, answers in zip(PROMPTS, seeds, truth, strict=True):
        assert said(sample(lm, traits, [prompt], sampling, copies=4, seeds=[seed])) == [answers]
    other = said(sample(lm, traits, PROMPTS, sampling, copies=4, seeds=[1, 2, 3, 4]))
    assert other != truth


def test_without_seeds_a_prompt_is_seeded_by_its_place(tiny: Tiny) -> None:
    lm = tiny("llama")
    traits = probe(lm)
    default = sample(lm, traits, PROMPTS, Sampling(6))
    assert said(default) == said(sample(lm, traits, PROMPTS, Sampling(6), seeds=[0, 1, 2, 3], rows=2))


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_single_new_token_and_prompts_of_a_single_token(tiny: Tiny, name: str) -> None:
    plain = tiny(name)
    plain.generation_config.eos_token_id = None
    lm = copy.deepcopy(plain)
    traits = probe(lm)
    sample(lm, traits, PROMPTS, Sampling(3))  # leaves a memory of other prompts behind
    (first,), (second,) = sample(lm, traits, [[40], [41]], Sampling(1, temperature=0))
    (lone,) = sample(lm, traits, [[40]], Sampling(1, temperature=0))[0]
    assert lone.tokens == first.tokens == by_transformers(plain, [40], 1, ())
    assert second.tokens == by_transformers(plain, [41], 1, ())
    torch.testing.assert_close(
        torch.tensor(lone.logprobs), full_logprobs(plain, [40], lone.tokens, 1.0), rtol=0, atol=2e-5
    )


def test_a_tree_of_one_token_after_sampling_is_not_taken_for_a_step_of_it(tiny: Tiny) -> None:
    lm = tiny("llama")
    traits = probe(lm)
    batch = lay_out_tree([Tree.from_path([40], [False])])
    hidden: list[Tensor] = []
    lm.get_output_embeddings().register_forward_pre_hook(lambda _m, args: hidden.append(args[0]))  # type: ignore[operator]
    with torch.no_grad():
        TreeModel(lm, traits)(batch, Want())
        before = hidden[-1].clone()
        sample(lm, traits, [[5, 6, 7]], Sampling(3))
        TreeModel(lm, traits)(batch, Want())
    torch.testing.assert_close(hidden[-1], before)


def test_tokens_come_as_they_are_drawn_and_the_mode_is_left_as_found(tiny: Tiny) -> None:
    lm = tiny("llama").train()
    traits = probe(lm)
    steps = list(decode(lm, traits, PROMPTS[:2], Sampling(4), copies=2, seeds=[0, 1]))
    assert [row for row, *_ in steps] == [0, 1, 2, 3] * 4
    assert lm.training
    found = sample(lm, traits, PROMPTS[:2], Sampling(4), copies=2, seeds=[0, 1])
    flat = [answer for answers in found for answer in answers]
    for row, answer in enumerate(flat):
        assert [token for r, token, *_ in steps if r == row] == answer.tokens


def chi_square(counts: Tensor, probs: Tensor) -> float:
    expected = probs.double() * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def draws(logits: Tensor, sampling: Sampling, n: int = 20000) -> Tensor:
    uniforms = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens, logprobs = draw(logits.expand(n, -1), uniforms, sampling)
    whole = (logits / sampling.temperature).log_softmax(-1)
    torch.testing.assert_close(logprobs, whole[tokens], rtol=1e-5, atol=1e-6)
    return torch.bincount(tokens, minlength=len(logits))


LOGITS = torch.tensor([1.0, -0.5, 2.0, 0.0, 0.7, -2.0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    counts = draws(LOGITS, Sampling(temperature=temperature))
    # 20.5: chi-square with 5 degrees of freedom is larger in one of a thousand.
    assert chi_square(counts, (LOGITS / temperature).softmax(-1)) < 20.5


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, {2}),
        ({"top_k": 3}, {2, 0, 4}),
        ({"top_k": 50}, {0, 1, 2, 3, 4, 5}),
        ({"top_p": 0.01}, {2}),
        ({"top_p": 0.6}, {2, 0}),
        ({"top_p": 0.9}, {2, 0, 4, 3}),
        ({"top_p": 0.9, "top_k": 2}, {2, 0}),
    ],
)
def test_truncation_keeps_the_smallest_top_set_in_proportion(
    settings: dict[str, float], kept: set[int]
) -> None:
    probs = LOGITS.softmax(-1)
    if "top_p" in settings and "top_k" not in settings:
        best = sorted(range(6), key=lambda i: -probs[i])
        sizes = [n for n in range(1, 7) if sum(float(probs[i]) for i in best[:n]) >= settings["top_p"]]
        assert kept == set(best[: sizes[0]]), "the expectation itself"
    counts = draws(LOGITS, Sampling(**settings))  # type: ignore[arg-type]
    assert {i for i in range(6) if counts[i]} == kept
    inside = sorted(kept)
    if len(inside) > 1:
        assert chi_square(counts[inside], probs[inside] / probs[inside].sum()) < 20.5


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    edges = torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = draw(logits.expand(4, -1), edges, Sampling())
    assert tokens.tolist() == [1, 1, 3, 3]
    assert logprobs.tolist() == pytest.approx([-0.6931472] * 4)


def test_temperature_zero_takes_the_likeliest_with_the_models_own_logprob() -> None:
    tokens, logprobs = draw(LOGITS[None], torch.tensor([0.99]), Sampling(temperature=0))
    assert tokens.tolist() == [2]
    torch.testing.assert_close(logprobs, LOGITS.log_softmax(-1)[2:3])


def test_copies_follow_the_models_distribution(tiny: Tiny) -> None:
    plain = tiny("llama", vocab_size=99)
    lm = copy.deepcopy(plain)
    n = 4000
    (answers,) = sample(lm, probe(lm), [PROMPTS[0]], Sampling(1), copies=n, rows=n)
    with torch.no_grad():
        probs = plain(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([a.tokens[0] for a in answers]), minlength=99)
    often = probs * n >= 8
    merged_probs = torch.cat([probs[often], probs[~often].sum()[None]])
    merged_counts = torch.cat([counts[often], counts[~often].sum()[None]])
    degrees = len(merged_probs) - 1
    assert degrees > 10
    # Mean plus 4 standard deviations of chi-square.
    assert chi_square(merged_counts, merged_probs) < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize(
    ("layers", "width", "words", "rows"),
    [(3, 128, 640, 256), (30, 576, 49_152, 64), (6, 128, 8_000, 241), (32, 4096, 150_000, 64)],
)
def test_a_small_model_gets_more_rows_and_a_large_one_no_more_memory(
    layers: int, width: int, words: int, rows: int
) -> None:
    from types import SimpleNamespace

    from espalier.models.sampling.generate import ROOM, rows_in_memory

    config = SimpleNamespace(num_hidden_layers=layers, hidden_size=width, vocab_size=words)
    found = rows_in_memory(SimpleNamespace(config=config), 160)  # type: ignore[arg-type]
    assert found == rows
    bytes_of_a_row = 4 * (layers * 2 * width * 160 + 4 * words)
    assert found == 64 or found * bytes_of_a_row <= ROOM
    assert rows_in_memory(SimpleNamespace(), 160) == 64, "of which nothing is known"  # type: ignore[arg-type]
