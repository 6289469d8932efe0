"""The functions that the README promises, on a model folder as a user has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import espalier
from espalier.errors import UserError
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.models.saved import save_model

TEXTS = [f"{a} plus {b} is {a + b}. 中文也可以。" for a in range(12) for b in range(12)]
TINY = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tokenizer = load.train_tokenizer(TEXTS, 320)
    torch.manual_seed(0)
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    lm = load.new_lm(TINY, len(tokenizer), ids)
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    save_model(made, TreeModel(lm, probe(lm)), tokenizer)
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[nn.Module, Any]:
    return espalier.load_model(str(folder), device="cpu")


@torch.no_grad()
def plain_logprobs(model: nn.Module, ids: list[int], start: int) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, start - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None])[:, 0]


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, espalier; assert 'torch' not in sys.modules; assert 'run' in espalier.__all__"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        espalier.trian  # noqa: B018


def test_a_loaded_model_is_transformers_own(folder: Path, loaded: tuple[nn.Module, Any]) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = loaded
    truth = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer.encode("3 plus 4 is 7.")])
    torch.testing.assert_close(model(input_ids=ids).logits, truth(input_ids=ids).logits)
    assert not model.training
    half, _ = espalier.load_model(str(folder), dtype="bfloat16", device="cpu")
    assert next(half.parameters()).dtype == torch.bfloat16


def test_a_folder_without_tokenizer_gives_none(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    model, tokenizer = espalier.load_model(str(tmp_path), device="cpu")
    assert tokenizer is None and isinstance(model, nn.Module)


def test_scores_are_those_of_one_sequence_at_a_time(loaded: tuple[nn.Module, Any]) -> None:
    model, tokenizer = loaded
    prompt, candidates = "3 plus 4 is", [" 7.", " 12.", " 中文也可以。", " 7 plus 4."]
    found = espalier.score(model, tokenizer, prompt, candidates)
    for (total, n), candidate in zip(found, candidates, strict=True):
        before, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + candidate)
        shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        truth = plain_logprobs(model, whole, shared)
        assert n == len(truth)
        assert total == pytest.approx(float(truth.sum()), abs=1e-4)


def test_greedy_texts_are_those_of_generate(loaded: tuple[nn.Module, Any]) -> None:
    model, tokenizer = loaded
    prompts = ["3 plus 4", "中文", "11 plus 11 is"]
    found = espalier.generate(model, tokenizer, prompts, max_new_tokens=8, temperature=0)
    for prompt, (one,) in zip(prompts, found, strict=True):
        ids = tokenizer.encode(prompt)
        made = model.generate(  # type: ignore[operator]
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False, max_new_tokens=8, pad_token_id=0,
        )[0, len(ids) :].tolist()  # fmt: skip
        assert one.tokens == made
        assert one.text == tokenizer.decode(made, skip_special_tokens=True)
        assert one.ended == (made[-1] == tokenizer.eos_token_id)
        truth = plain_logprobs(model, ids + made, len(ids))
        torch.testing.assert_close(torch.tensor(one.logprobs), truth, rtol=0, atol=2e-5)


def test_samples_follow_from_the_seed(loaded: tuple[nn.Module, Any]) -> None:
    model, tokenizer = loaded

    def said(**settings: Any) -> list[list[str]]:
        found = espalier.generate(model, tokenizer, ["3 plus", "4"], max_new_tokens=6, **settings)
        return [[answer.text for answer in answers] for answers in found]

    one = said(copies=3, seed=1)
    assert [len(answers) for answers in one] == [3, 3]
    assert said(copies=3, seed=1) == one and said(copies=3, seed=2) != one
    assert len({text for answers in one for text in answers}) > 3
    assert said(top_k=1, seed=5) == said(temperature=0)


def test_further_stop_tokens_end_an_answer(loaded: tuple[nn.Module, Any]) -> None:
    model, tokenizer = loaded
    prompts = ["3 plus", "中文", "11 plus 11 is", "7"]
    free = espalier.generate(model, tokenizer, prompts, max_new_tokens=8, temperature=0)
    prompt, (long,) = max(zip(prompts, free, strict=True), key=lambda pair: len(set(pair[1][0].tokens)))
    stop = long.tokens[-2]
    assert len(set(long.tokens)) > 3
    ((held,),) = espalier.generate(model, tokenizer, [prompt], max_new_tokens=8, temperature=0, stop=[stop])
    assert held.tokens == long.tokens[: long.tokens.index(stop) + 1] and held.ended


def test_an_empty_prompt_is_refused_by_its_number(loaded: tuple[nn.Module, Any]) -> None:
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        espalier.generate(*loaded, ["3 plus", ""], max_new_tokens=2)


def test_run_is_the_command(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{i} plus 1?", "completion": str(i + 1)} for i in range(12)]
    data.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    file = tmp_path / "sft.yaml"
    file.write_text(
        f"stage: sft\nmodel_name_or_path: {folder}\ndataset: {data}\noutput_dir: {tmp_path / 'run'}\n"
        "cutoff_len: 128\nmax_steps: 1\n",
        "utf-8",
    )
    summary = espalier.run(str(file), learning_rate=1e-4)
    assert summary["status"] == "done" and summary["steps"] == 1
    assert "learning_rate: 0.0001" in (tmp_path / "run" / "sft" / "config.yaml").read_text("utf-8")
    model, tokenizer = espalier.load_model(str(tmp_path / "run" / "sft" / "model"))
    assert espalier.generate(model, tokenizer, ["1 plus 1?"], max_new_tokens=2)[0][0].tokens
    with pytest.raises(UserError, match="learning_rate"):
        espalier.run(str(file), learning_rat=1e-4)
