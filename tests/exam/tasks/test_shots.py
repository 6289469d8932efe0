"""Solved examples: which are drawn, and how a chat template holds them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.data.encode.templates import choose_template
from espalier.errors import UserError
from espalier.exam.answers.choose import Chooser
from espalier.exam.task import Candidate, Question, Shots
from espalier.exam.tasks.shots import Asker, draw_shots
from tests.exam.independent import alone, model_of, tokenizer_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = Question(
    "1", "2 + 3 =", (Candidate(" 5"), Candidate(" 6")), 0,
    shots=Shots("Add.\n\n", (("1 + 1 =", " 2"), ("1 + 2 =", " 3"))),
)  # fmt: skip


@pytest.fixture
def tokenizer(vocabulary: Callable[[str], Path]) -> Any:
    found = tokenizer_of(str(vocabulary("gpt2")))
    found.chat_template = CHATML
    return found


def test_each_pair_is_equally_likely_and_the_order_of_the_file_says_nothing() -> None:
    pool = [(f"q{i}", f"a{i}") for i in range(10)]
    counts: Counter[str] = Counter()
    for seed in range(2000):
        drawn = draw_shots(pool, 3, seed, "x")
        assert len(set(drawn)) == 3
        turned = pool[::-1]
        assert draw_shots(turned, 3, seed, "x") == drawn
        counts.update(asked for asked, _ in drawn)
    assert all(500 < counts[f"q{i}"] < 700 for i in range(10)), counts


def test_repeated_pairs_are_one() -> None:
    with pytest.raises(UserError, match=r"train\.json: 2 solved examples; 3 shots"):
        draw_shots([("a", "b"), ("a", "b"), ("c", "d")], 3, 0, "train.json")


def test_the_pool_is_a_stream() -> None:
    many = ((str(i), "") for i in range(200_000))
    assert len(draw_shots(many, 5, random.randrange(9), "x")) == 5


def test_plain_text() -> None:
    asked = Asker().ask(QUESTION)
    assert asked.prefix == "Add.\n\n1 + 1 = 2\n\n1 + 2 = 3\n\n" and asked.prompt == "2 + 3 ="
    fewer = Asker().ask(QUESTION, QUESTION.shots.fewer())
    assert fewer.prefix == "Add.\n\n1 + 2 = 3\n\n"


def test_shots_as_turns(tokenizer: Any) -> None:
    asked = Asker(choose_template(tokenizer, "auto"), "turns").ask(QUESTION)
    messages = [
        {"role": "user", "content": "Add.\n\n1 + 1 ="}, {"role": "assistant", "content": "2"},
        {"role": "user", "content": "1 + 2 ="}, {"role": "assistant", "content": "3"},
        {"role": "user", "content": "2 + 3 ="},
    ]  # fmt: skip
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked.prefix + asked.prompt == whole
    assert [c.text for c in asked.candidates] == ["5", "6"], "a turn begins without the space of plain text"


def test_shots_in_one_message(tokenizer: Any) -> None:
    asked = Asker(choose_template(tokenizer, "auto"), "message").ask(QUESTION)
    message = {"role": "user", "content": "Add.\n\n1 + 1 = 2\n\n1 + 2 = 3\n\n2 + 3 ="}
    whole = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert asked.prefix + asked.prompt == whole


@pytest.mark.parametrize("shots_as", ["turns", "message"])
def test_a_question_in_a_template_is_scored_as_its_whole_text(shots_as: Any, tokenizer: Any) -> None:
    model = model_of("llama", tokenizer)
    asked = Asker(choose_template(tokenizer, "auto"), shots_as).ask(QUESTION)
    (found,), _ = Chooser(model, tokenizer).score([asked])
    for candidate, score in zip(asked.candidates, found.scores, strict=True):
        truth, _ = alone(model.lm, tokenizer, asked.prefix + asked.prompt, candidate.text)
        assert score == pytest.approx(truth, abs=1e-4)


def test_what_is_scored_moves_with_the_dropped_space(tokenizer: Any) -> None:
    question = Question("1", "About", (Candidate(" sport: goal", 7), Candidate(" money: goal", 7)), 0)
    asked = Asker(choose_template(tokenizer, "auto")).ask(question)
    assert [c.text[c.scored_from :] for c in asked.candidates] == [" goal", " goal"]
