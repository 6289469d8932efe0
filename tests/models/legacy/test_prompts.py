"""Inputs of the prefix models: as the original code built them for its golden cases; and their rewards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import espalier
from espalier.models.forward import TreeModel, Want
from espalier.models.heads import ScalarHead
from espalier.models.probe import probe
from espalier.trees.batch import lay_out_padded
from espalier.trees.tree import Tree
from tests.conftest import Golden
from tests.models.legacy.conftest import cases
from tests.models.legacy.plain import TOLERANCE
from tests.models.legacy.prompts import chatglm_path, glm_path, whole_inputs


@pytest.fixture
def glm(golden: Golden) -> Any:
    model: Any = espalier.load_model(str(golden("glm")), device="cpu")[0]
    model.config.bos_token_id, model.config.eos_token_id = 246, 247
    model.config.blank_token_ids, model.config.cls_token_id = [243, 248, 249], 242
    return model


@pytest.fixture
def chatglm(golden: Golden) -> Any:
    return espalier.load_model(str(golden("chatglm")), device="cpu")[0]


def test_glm_s_inputs_are_the_original_s(glm: Any, golden: Golden) -> None:
    read = 0
    for case in cases(golden("glm")):
        ids, positions = case.inputs["input_ids"], case.inputs.get("position_ids")
        mask = case.inputs.get("attention_mask", case.inputs.get("generation_attention_mask"))
        if positions is None or mask is None:
            continue
        width = ids.shape[1]
        made = whole_inputs([row.tolist() for row in ids], glm.config)
        for row in range(len(ids)):
            # the original hides a prompt's own padding; here a token of the row is a token
            real = mask[row, 0, width - 1, :width].bool()
            assert torch.equal(made["position_ids"][row][:, real], positions[row, :, :width][:, real])
            if bool(real.all()):
                assert torch.equal(made["attention_mask"][row], mask[row, :, :width, :width])
                read += 1
    assert read >= 6


def test_chatglm_s_inputs_are_the_original_s(chatglm: Any, golden: Golden) -> None:
    read = 0
    for case in cases(golden("chatglm")):
        if "position_ids" not in case.inputs or case.name == "early_code_gmask":
            continue
        rows = [[i for i in row.tolist() if i != 3] for row in case.inputs["input_ids"]]
        made = whole_inputs(rows, chatglm.config, padding="left")
        assert torch.equal(made["input_ids"], case.inputs["input_ids"])
        assert torch.equal(made["position_ids"], case.inputs["position_ids"])
        assert torch.equal(made["attention_mask"], case.inputs["attention_mask"])
        read += 1
    assert read >= 8


def test_paths(glm: Any, chatglm: Any) -> None:
    assert glm_path([5, 6], None, glm.config) == ([242, 5, 6, 249, 240, 246], [False] * 6)
    ids, flags = glm_path([5, 243, 6], [7, 8], glm.config)
    assert ids == [242, 5, 243, 6, 240, 246, 7, 8, 247]
    assert flags == [False] * 6 + [True] * 3
    ids, flags = chatglm_path([5, 6], [7], chatglm.config)
    assert (ids, flags) == ([5, 6, 241, 244, 7, 245], [False] * 4 + [True] * 2)
    assert chatglm_path([5, 240], None, chatglm.config)[0] == [5, 240, 244]


@pytest.mark.parametrize("family", ["glm", "chatglm"])
def test_padded_rows_give_what_whole_inputs_give(family: str, request: pytest.FixtureRequest) -> None:
    lm: Any = request.getfixturevalue(family)
    make = glm_path if family == "glm" else chatglm_path
    answers = [[7, 8, 9], [10], [11, 12, 13, 14, 15]]
    paths = [make([30, 31, 32, 33], answer, lm.config) for answer in answers]
    batch = lay_out_padded([Tree.join(paths)])
    model = TreeModel(lm, probe(lm), ScalarHead(lm.config.hidden_size))
    with torch.no_grad():
        found = model(batch, Want(scores=True, values=True))
        for branch, (ids, flags) in enumerate(paths):
            out = lm(**whole_inputs([ids], lm.config)).logits[0].log_softmax(-1)
            at = [i for i, flag in enumerate(flags) if flag]
            alone = torch.stack([out[i - 1, ids[i]] for i in at])
            assert found.logprobs is not None
            assert (found.logprobs[branch, : len(at)] - alone).abs().max() < TOLERANCE
    # GLM's padding is the token that closes its prompt; a reward read there once was NaN
    assert found.scores is not None
    assert torch.isfinite(found.scores).all()
    assert len(set(found.scores.tolist())) == 3


def test_pad_tokens_inside_a_prompt_do_not_end_it(glm: Any) -> None:
    """A pair whose reward must differ, as both end with the same token and close the prompt with the padding."""
    good, bad = (glm_path([5, 6], answer, glm.config) for answer in ([7, 8], [9]))
    batch = lay_out_padded([Tree.join([good, bad])])
    model = TreeModel(glm, probe(glm), ScalarHead(glm.config.hidden_size))
    scores = model(batch, Want(logprobs=False, scores=True)).scores
    assert scores is not None
    loss = -torch.nn.functional.logsigmoid(scores[0] - scores[1])
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in glm.parameters())
