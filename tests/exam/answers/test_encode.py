"""Texts that are encoded in parts are encoded as if whole, for every exam and real tokenizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.data.records import LeftOut
from espalier.errors import UserError
from espalier.exam.answers.encode import Head, agreement, encode_questions
from espalier.exam.task import Candidate
from espalier.exam.tasks import Settings, clue, make_task
from espalier.exam.tasks.shots import Asker
from tests.conftest import Vocabulary
from tests.exam.independent import encoded, first_token, tokenizer_of

EXAMS = [*clue.EXAMS, "ceval", "cmmlu", "mmlu"]


@pytest.fixture(scope="module", params=["gpt2", "aquila_bpe", "chinese_llama_sp"])
def tokenizer(
    request: pytest.FixtureRequest,
    vocabulary: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    folder = vocabulary(request.param)
    if (
        (folder / "chinese_sp.model").is_file() and request.param == "chinese_llama_sp"
    ):  # puts bos before a text, and a space before its first word
        pytest.importorskip("sentencepiece", reason="reading a sentencepiece model needs the package")
        copy = tmp_path_factory.mktemp("sp")
        shutil.copy(folder / "chinese_sp.model", copy / "tokenizer.model")
        (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
        folder = copy
    return tokenizer_of(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("prompts", ["plain", "pangu"])
@pytest.mark.parametrize("name", EXAMS)
def test_parts_are_the_whole(name: str, prompts: Any, tokenizer: Any, layouts: Path) -> None:
    if name not in clue.EXAMS and prompts == "pangu":
        return  # knowledge layouts have prompts of their own
    for shots in (0, 3):
        task = make_task(name, Settings(layouts, prompts, limit=2), shots=shots)
        questions = [q for q in task.read() if not isinstance(q, LeftOut)][:8]
        assert questions
        asked = [Asker().ask(question) for question in questions]
        for prefix in dict.fromkeys(one.prefix for one in asked):
            mine = [one for one in asked if one.prefix == prefix]
            head = Head(tokenizer, prefix, mine[0].prompt + mine[0].candidates[0].text)
            found = encode_questions(tokenizer, head, [(one.prompt, one.candidates) for one in mine])
            for one, question in zip(mine, found, strict=True):
                for candidate, (tail, unscored) in zip(one.candidates, question.tails, strict=True):
                    ids = head.ids + question.stem + tail
                    before, whole = one.prefix + one.prompt, one.prefix + one.prompt + candidate.text
                    truth = encoded(tokenizer, whole)
                    start = agreement(
                        encoded(tokenizer, before + candidate.text[: candidate.scored_from]), truth
                    )
                    if start == 0:
                        truth, start = [first_token(tokenizer), *truth], 1
                    assert ids[-len(truth) :] == truth and len(ids) - len(truth) in (0, 1)
                    assert len(tail) - unscored == len(truth) - start, "other tokens are scored"


def scored(tokenizer: Any, prompt: str, candidate: str) -> str:
    head = Head(tokenizer, "", prompt + candidate)
    (found,) = encode_questions(tokenizer, head, [(prompt, (Candidate(candidate),))])
    ((tail, unscored),) = found.tails
    return tokenizer.decode(tail[unscored:])


def test_a_token_merged_across_the_boundary_is_scored_whole(vocabulary: Vocabulary) -> None:
    tokenizer = tokenizer_of(str(vocabulary("gpt2")))
    assert scored(tokenizer, "He is run", "ning") == " running"
    assert scored(tokenizer, "He is", " running") == " running"


def test_a_chinese_word_merged_across_the_boundary_is_scored_whole(vocabulary: Vocabulary) -> None:
    tokenizer = tokenizer_of(str(vocabulary("aquila_bpe")))
    assert len(tokenizer("中国")["input_ids"]) == 1
    assert scored(tokenizer, "我来自中", "国") != "国"
    assert scored(tokenizer, "我来自", "中国").endswith("中国")


def test_text_inside_of_the_candidate_that_is_not_scored(vocabulary: Vocabulary) -> None:
    tokenizer = tokenizer_of(str(vocabulary("gpt2")))
    candidates = (Candidate("sports: a goal", 7), Candidate("money: a goal", 6))
    (found,) = encode_questions(tokenizer, Head(tokenizer, "", "About"), [("About ", candidates)])
    for tail, unscored in found.tails:
        assert tokenizer.decode(tail[unscored:]) == " a goal"


def test_an_empty_candidate_is_refused(vocabulary: Vocabulary) -> None:
    tokenizer = tokenizer_of(str(vocabulary("gpt2")))
    with pytest.raises(UserError, match="adds no token"):
        scored(tokenizer, "Yes?", "")
