"""A certificate holds for what is the same model in another form, and for nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from espalier.cli import app
from espalier.errors import UserError
from espalier.models import load
from espalier.models.certificate import compare_forms, open_form
from espalier.models.forward import TreeModel
from espalier.models.heads import ScalarHead
from espalier.models.probe import probe
from espalier.models.saved import save_model

TEXTS = ["one two three", "zwei drei vier", "三四五"]
SMALL = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "tie_word_embeddings": False}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = load.train_tokenizer(TEXTS * 20, 300)
    torch.manual_seed(0)
    lm: Any = load.new_lm(SMALL, len(tokenizer), {"eos_token_id": tokenizer.eos_token_id})
    with torch.no_grad():
        lm.lm_head.weight.mul_(30)  # so that the likeliest token is no tie
    save_model(folder, TreeModel(lm, probe(lm)), tokenizer)
    return folder


def changed(base: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    shutil.copytree(base, folder)
    tensors = {name: change(t) for name, t in load_file(base / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def test_a_copy_is_the_model_and_rounding_shows_as_little(base: Path, tmp_path: Path) -> None:
    copy = compare_forms(
        open_form(str(base)), changed(base, tmp_path / "copy", lambda t: t), TEXTS, max_new_tokens=8
    )
    assert copy.failures(0.0, 0.0) == [] and copy.differences is not None
    assert (copy.same_ids, copy.same_answers, copy.differences.logit_error_max) == (3, 3, 0.0)
    rounded = changed(base, tmp_path / "half", lambda t: t.to(torch.bfloat16).float())
    half = compare_forms(open_form(str(base)), rounded, TEXTS, max_new_tokens=8)
    assert half.differences is not None and 0 < half.differences.kl < 0.1
    assert half.failures(0.1, 0.0) == [] and half.failures(1e-9, 0.0) != []


def test_other_weights_another_tokenizer_and_another_vocabulary_are_named(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = changed(base, tmp_path / "other", lambda t: t + 0.1 * torch.randn_like(t))
    found = compare_forms(open_form(str(base)), other, TEXTS, max_new_tokens=8)
    assert found.same_answers is not None and found.same_answers < 3 and found.first_other is not None
    assert any("nats a token, more than 0.001" in line for line in found.failures(1e-3, 1e-3))
    words = changed(base, tmp_path / "words", lambda t: t)
    load.train_tokenizer([text[::-1] for text in TEXTS] * 20, 300).save_pretrained(words)
    found = compare_forms(open_form(str(base)), words, TEXTS, max_new_tokens=8)
    assert any("become other token ids" in line for line in found.failures(1e-3, 1e-3))


def test_scores_of_reward_models(base: Path, tmp_path: Path) -> None:
    lm: Any = load.load_lm(str(base))
    torch.manual_seed(2)
    head = ScalarHead(32)
    names = []
    for name, scale in (("a", 1.0), ("b", 1.0), ("c", 1.5)):
        (tmp_path / name).mkdir()
        own = ScalarHead(32)
        own.weight.data = scale * head.weight.data
        save_model(tmp_path / name, TreeModel(lm, probe(lm), own), load.load_tokenizer(str(base)))
        names.append(str(tmp_path / name))
    same, scaled = (compare_forms(open_form(names[0]), name, TEXTS, max_new_tokens=4) for name in names[1:])
    assert same.failures(0, 1e-6) == [] and same.score_error is not None and same.differences is None
    assert scaled.score_error is not None and scaled.score_error > 1e-3
    assert "scores differ by up to" in scaled.failures(0, 1e-3)[0]
    with pytest.raises(UserError, match="one is a reward model and the other is not"):
        compare_forms(open_form(str(base)), names[0], TEXTS, max_new_tokens=4)


def test_the_command(base: Path, tmp_path: Path) -> None:
    copy = changed(base, tmp_path / "copy", lambda t: t)
    other = changed(base, tmp_path / "other", lambda t: 1.2 * t)
    good = CliRunner().invoke(app, ["certify", str(base), copy, "--out", str(tmp_path / "good.json")])
    assert good.exit_code == 0 and "certified: within" in good.output, good.output
    assert json.loads((tmp_path / "good.json").read_text("utf-8"))["passed"] is True
    bad = CliRunner().invoke(app, ["certify", str(base), copy, other, "--out", str(tmp_path / "bad.json")])
    assert "another answer to" in bad.output.replace("\n", " ")
    assert bad.exit_code == 1 and "more than 0.001 (--max-kl)" in bad.output
    written = json.loads((tmp_path / "bad.json").read_text("utf-8"))
    assert not written["passed"] and written["forms"][copy]["failures"] == []
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one two"}\n{"text": "x"}\n', "utf-8")
    wrong = CliRunner().invoke(app, ["certify", str(base), copy, "--prompts", str(prompts)])
    assert isinstance(
        wrong.exception, UserError
    ) and "prompts.jsonl:2: wanted a JSON object with a `prompt`" in str(wrong.exception)
