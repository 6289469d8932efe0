"""Candidates scored in trees are candidates scored one at a time, whatever the layout, the order and the rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import espalier
from espalier.errors import UserError
from espalier.exam.answers.choose import Chooser, ExamPrompt
from espalier.exam.answers.scorer import Scored
from espalier.exam.numbers.scores import predicted
from espalier.exam.task import Candidate
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from tests.conftest import Vocabulary
from tests.exam.independent import CONFIGS, alone, model_of, tokenizer_of

SHOTS = "Question: What is 1 + 1?\nAnswer: 2\n\n"
QUESTIONS = [
    ("中国的首都是哪里？\n答：", (Candidate("北京"), Candidate("上海"), Candidate("广州市"))),
    ("中国的首都是哪里？\n答：不是", (Candidate("北京"), Candidate("上海"))),
    ("Question: What is 2 + 3?\nAnswer:", tuple(map(Candidate, (" 5", " 6", " five", " fifty-five")))),
    ("Question: What is 2 + 4?\nAnswer:", (Candidate(" 5"), Candidate(" 6"))),
    ("下面两个句子语义", (Candidate("相同：“好”；“很好”", 3), Candidate("不同：“好”；“很好”", 3))),
]


@pytest.fixture(scope="module", params=["gpt2", "aquila_bpe"])
def tokenizer(request: pytest.FixtureRequest, vocabulary: Callable[[str], Path]) -> Any:
    return tokenizer_of(str(vocabulary(request.param)))


def ask(prefix: str, questions: Any = QUESTIONS) -> list[ExamPrompt]:
    return [ExamPrompt(prefix, prompt, candidates) for prompt, candidates in questions]


def flat(found: list[Scored]) -> list[float]:
    return [score for scored in found for score in scored.scores]


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("prefix", ["", SHOTS * 3], ids=["0-shot", "3-shot"])
def test_trees_score_as_one_sequence_at_a_time(name: str, prefix: str, tokenizer: Any) -> None:
    model = model_of(name, tokenizer)
    found, cost = Chooser(model, tokenizer).score(ask(prefix))
    assert (model.traits.method == "padded") == (name == "bloom")
    assert cost.computed < cost.unshared or name == "bloom"
    for (prompt, candidates), scored in zip(QUESTIONS, found, strict=True):
        for candidate, score, count in zip(candidates, scored.scores, scored.tokens, strict=True):
            truth, n = alone(model.lm, tokenizer, prefix + prompt, candidate.text, candidate.scored_from)
            assert count == n and score == pytest.approx(truth, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_order_rows_and_layout_change_nothing(name: str, tokenizer: Any) -> None:
    model = model_of(name, tokenizer)
    padded = TreeModel(model.lm, probe(model.lm, wanted="padded")).eval()
    asked = ask(SHOTS * 3) + ask("") + ask(SHOTS)
    truth, _ = Chooser(padded, tokenizer).score(asked)
    model.lm.set_attn_implementation("espalier" if model.traits.method == "pieces" else "eager")
    model = TreeModel(model.lm, probe(model.lm)).eval()
    for row_tokens in (1, 40, 4096):
        found, _ = Chooser(model, tokenizer, row_tokens=row_tokens).score(asked)
        turned, _ = Chooser(model, tokenizer, row_tokens=row_tokens).score(asked[::-1])
        assert flat(found) == pytest.approx(flat(truth), abs=1e-4)
        assert flat(turned[::-1]) == pytest.approx(flat(truth), abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_a_cached_prefix_is_the_prefix(name: str, tokenizer: Any) -> None:
    model = model_of(name, tokenizer)
    asked = ask(SHOTS * 12)
    in_row, whole = Chooser(model, tokenizer, row_tokens=100_000).score(asked)
    chooser = Chooser(model, tokenizer, row_tokens=64)
    cached, once = chooser.score(asked)
    assert flat(cached) == pytest.approx(flat(in_row), abs=1e-4)
    assert once.unshared == whole.unshared
    again, more = chooser.score(asked)
    assert flat(again) == flat(cached)
    assert more.computed < once.computed - 100, "the prefix was read again"


def test_what_does_not_fit_loses_examples_first_then_its_beginning(vocabulary: Callable[[str], Path]) -> None:
    tokenizer = tokenizer_of(str(vocabulary("gpt2")))
    model = model_of("llama", tokenizer, max_position_embeddings=40)
    prompt, candidates = QUESTIONS[2]
    shorter = [ExamPrompt(SHOTS * n, prompt, candidates) for n in (2, 1)]

    (scored,), _ = Chooser(model, tokenizer).score(
        [ExamPrompt(SHOTS * 3, prompt, candidates)], lambda i: shorter.pop(0) if shorter else None
    )
    assert scored.cut == 0 and len(shorter) == 0, "two examples are too many, one fits"
    truth, _ = alone(model.lm, tokenizer, SHOTS + prompt, candidates[0].text)
    assert scored.scores[0] == pytest.approx(truth, abs=1e-4)

    (cut,), _ = Chooser(model, tokenizer).score([ExamPrompt("", "word " * 60 + prompt, candidates)])
    assert cut.cut > 0
    ids = tokenizer("word " * 60 + prompt)["input_ids"]
    longest = max(len(tokenizer(c.text)["input_ids"]) for c in candidates)
    assert len(ids) - cut.cut + longest - 1 == 40, "no more is cut than must be"
    (out, asked), _ = Chooser(model, tokenizer).score(
        [ExamPrompt("", "Say:", (Candidate(text), Candidate(" no"))) for text in (" word" * 60, " yes")]
    )
    assert out.excess == len(tokenizer(" word" * 60)["input_ids"]) - 40 and not out.scores, (
        "one token stays before it"
    )
    assert asked.excess == 0 and len(asked.scores) == 2


def test_a_scored_text_that_is_longer_than_the_context_loses_its_end(
    vocabulary: Vocabulary,
) -> None:
    """As PanGu's prompts need on long app descriptions: label and beginning stay, in all candidates alike."""
    tokenizer = tokenizer_of(str(vocabulary("gpt2")))
    model = model_of("llama", tokenizer, max_position_embeddings=40)
    labels, text = (" sports", " money market"), " word" * 60
    candidates = tuple(Candidate(f"{label}:{text}", len(label) + 1) for label in labels)
    (found,), _ = Chooser(model, tokenizer).score([ExamPrompt("", "About", candidates)])
    assert found.lost == 60 - found.tokens[0] > 0 and found.cut == 0 and found.tokens[0] == found.tokens[1]
    kept = " word" * found.tokens[0]
    for label, score in zip(labels, found.scores, strict=True):
        truth, n = alone(model.lm, tokenizer, "About", f"{label}:{kept}", len(label) + 1)
        assert n == found.tokens[0] and score == pytest.approx(truth, abs=1e-4)
    assert len(tokenizer(f"About{labels[1]}:{kept}")["input_ids"]) - 1 == 40, "no more is cut than must be"


def test_bfloat16_drifts_but_little(vocabulary: Callable[[str], Path]) -> None:
    tokenizer = tokenizer_of(str(vocabulary("gpt2")))
    model = model_of("llama", tokenizer)
    exact, _ = Chooser(model, tokenizer).score(ask(SHOTS))
    half, _ = Chooser(model.bfloat16(), tokenizer).score(ask(SHOTS))
    for one, other in zip(exact, half, strict=True):
        for a, b, n in zip(one.scores, other.scores, one.tokens, strict=True):
            assert abs(a - b) / n < 0.5, "16 bits keep two or three digits of a logprob"


def test_the_python_interface_gives_the_same(vocabulary: Callable[[str], Path]) -> None:
    tokenizer = tokenizer_of(str(vocabulary("gpt2")))
    model = model_of("llama", tokenizer)
    prompt, candidates = QUESTIONS[2]
    texts = [candidate.text for candidate in candidates]
    for (total, count), text in zip(espalier.score(model.lm, tokenizer, prompt, texts), texts, strict=True):
        truth, n = alone(model.lm, tokenizer, prompt, text)
        assert count == n and total == pytest.approx(truth, abs=1e-4)


def test_a_candidate_without_a_token_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="adds no token"):
        Chooser(model_of("gpt2", tokenizer), tokenizer).score(
            [ExamPrompt("", "Yes or no?", (Candidate(""), Candidate(" no")))]
        )


def test_a_broken_model_gets_no_score() -> None:
    with pytest.raises(UserError, match="weights are broken"):
        predicted(Scored([float("nan"), 0.0], [1, 1]), "sum")


def test_the_first_of_equals_is_chosen_and_means_differ_from_sums() -> None:
    assert predicted(Scored([-2.0, -2.0], [1, 1]), "sum") == 0
    long = Scored([-3.0, -2.0], [3, 1])
    assert (predicted(long, "sum"), predicted(long, "mean")) == (1, 0)
