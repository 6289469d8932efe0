"""An answer is shown to a reward model in rollouts exactly as in its training and its exam, whatever template and end."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from espalier.data.encode.named_templates import forms
from espalier.data.encode.prompts import encode_prompt_ids
from espalier.data.encode.scored import ScoreAt, closing
from espalier.data.encode.templates import choose_template
from espalier.data.encode.tokenise import Encoder, encode
from espalier.data.read.account import Account
from espalier.data.records import Message, Record
from espalier.exam.answers.rate import Rater
from espalier.models.forward import TreeModel, Want
from espalier.models.heads import ScalarHead
from espalier.models.load import new_lm
from espalier.models.probe import probe
from espalier.models.saved import read_scalar_head, save_model
from espalier.rollout.asked import Ask
from espalier.rollout.experience import AnswerGroup, as_judged
from espalier.trees import Tree, lay_out_tree
from tests.data.conftest import CHATML

ASKED = [Message("user", "春眠不觉晓，\n下一句？")]
TEXTS = ["处处闻啼鸟。", "no idea 😀"]
TEMPLATES = ["simple", "tokenizer", *forms()]


@pytest.fixture(scope="module", params=["aquila", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    made = copy.deepcopy(request.getfixturevalue(request.param))
    ends = {form.end for form in forms().values() if form.end}
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *sorted({"<|im_end|>", *ends})]})
    made.chat_template = CHATML
    return made


def pair() -> Record:
    chosen, rejected = ((Message("assistant", text),) for text in TEXTS)
    return Record.preference(tuple(ASKED), chosen, rejected, "data:1")


def sampled(encoder: Encoder, *, own_end: bool) -> AnswerGroup:
    """The pair's answers as a policy would write them: the prompt's ids, the answer's, and a stop token."""
    prompt = Record("prompt", tuple(ASKED), source="data:1")
    ((_, ids),) = encode_prompt_ids([prompt], encoder, 512, Account())
    assert ids is not None
    paths = []
    for text in TEXTS:
        chat = Record.chat((*ASKED, Message("assistant", text)), "data:1", None)
        (tree,) = encode(chat, encoder)
        ((tokens, trained),) = tree.paths()
        answer = tokens[trained].tolist()
        if own_end:
            mark = closing(encoder.tokenizer, encoder.template).end
            answer = [*answer[: -len(mark)], encoder.tokenizer.eos_token_id]
        paths.append((ids + answer, [False] * len(ids) + [True] * len(answer)))
    return AnswerGroup(Ask(ids, "", None, "data:1"), Tree.join(paths), TEXTS, [True, True])


@pytest.mark.parametrize("score_at", ["answer", "turn"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_same_ids_are_read_in_training_and_in_rollouts(
    name: str, score_at: ScoreAt, tokenizer: Any
) -> None:
    template = choose_template(tokenizer, name)
    trained = Encoder(tokenizer, template, 512, answers_trained=False, score_at=score_at)
    (tree,) = encode(pair(), trained)
    end = closing(tokenizer, template)
    for own_end in (False, True):
        shown = as_judged(sampled(Encoder(tokenizer, template, 512), own_end=own_end), end, score_at)
        for (ids, _), (others, _) in zip(tree.paths(), shown.paths(), strict=True):
            assert ids.tolist() == others.tolist()
    last = [int(ids[-1]) for ids, _ in tree.paths()]
    assert last == [(end.tail[-1] if score_at == "turn" and end.tail else end.end[-1])] * 2


def test_the_places_differ_where_a_template_writes_behind_the_end(tokenizer: Any) -> None:
    end = closing(tokenizer, choose_template(tokenizer, "tokenizer"))
    assert len(end.tail) == 1 and tokenizer.decode(end.tail[0]) == "\n"
    assert tokenizer.decode(end.end[0]) == "<|im_end|>"


def test_an_answer_that_was_cut_keeps_its_tokens(tokenizer: Any) -> None:
    end = closing(tokenizer, choose_template(tokenizer, "tokenizer"))
    assert end.closed([5, 6, 7], False, "turn") == [5, 6, 7]


@pytest.fixture(scope="module")
def reward_model(tokenizer: Any) -> TreeModel:
    torch.manual_seed(0)
    lm = new_lm(
        {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 256},
        len(tokenizer),
        {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0},
    )  # fmt: skip
    model = TreeModel(lm, probe(lm), ScalarHead(32))
    torch.nn.init.normal_(model.scalar_head.weight)
    return model.eval()


@pytest.mark.parametrize("said", ["answer", "turn", None])
def test_exam_and_rollout_give_one_score(
    said: str | None, tokenizer: Any, reward_model: TreeModel, tmp_path: Any
) -> None:
    """And the place goes through the folder; a folder that says none is read as model cards show it."""
    assert reward_model.scalar_head is not None
    reward_model.scalar_head.score_at = said
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", reward_model, None)
    head = read_scalar_head(str(tmp_path / "model"))
    assert head is not None and head.score_at == said
    template = choose_template(tokenizer, "tokenizer")
    rater = Rater(reward_model, tokenizer, template)
    (rated,), _ = rater.rate([pair()])
    scores = {}
    for place in ("answer", "turn"):
        shown = as_judged(
            sampled(rater_encoder(tokenizer), own_end=False), closing(tokenizer, template), place
        )
        with torch.no_grad():
            scores[place] = reward_model(
                lay_out_tree([shown]), Want(logprobs=False, scores=True)
            ).scores.numpy()
    assert abs(scores["answer"] - scores["turn"]).max() > 1e-3, "the places must not be the same"
    here, there = ("answer", "turn") if said == "answer" else ("turn", "answer")
    np.testing.assert_allclose(rated.scores, scores[here], atol=1e-5)
    if said is None:
        np.testing.assert_allclose(rated.elsewhere, scores[there], atol=1e-5)
    else:
        assert rated.elsewhere is None


def rater_encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer, choose_template(tokenizer, "tokenizer"), 256)


class Slow:
    """A tokenizer that knows no characters and puts a space before each text, as old SentencePiece ones do."""

    is_fast, bos_token_id = False, None

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    def __call__(self, text: str, **how: Any) -> Any:
        return self._fast(" " + text, add_special_tokens=False)

    def decode(self, ids: list[int], **how: Any) -> str:
        return str(self._fast.decode(ids))


def test_a_slow_tokenizer_encodes_a_prompt_as_it_did(tokenizer: Any) -> None:
    """It could not tell an answer from the prompt before it, and a prompt alone has none."""
    encoder = Encoder(Slow(tokenizer), choose_template(tokenizer, "simple"), 512)
    prompt = Record("prompt", tuple(ASKED), source="data:1")
    ((_, ids),) = encode_prompt_ids([prompt], encoder, 512, Account())
    assert tokenizer.decode(ids) == " User:\n春眠不觉晓，\n下一句？\nAssistant:\n"
