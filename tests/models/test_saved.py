"""Folders that we write are read back by us and by transformers with the same numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from espalier.models.adapters.kinds import add_lora
from espalier.models.forward import TreeModel, Want
from espalier.models.heads import ScalarHead
from espalier.models.load import load_lm, train_tokenizer
from espalier.models.load_adapted import load_with_adapter
from espalier.models.probe import probe
from espalier.models.saved import HEAD_FILE, read_scalar_head, save_model
from espalier.trees import Tree, lay_out_padded, lay_out_tree

Tiny = Callable[..., nn.Module]
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@torch.no_grad()
def logits(lm: nn.Module) -> Tensor:
    return lm.eval()(input_ids=IDS).logits


@torch.no_grad()
def scores(lm: nn.Module, head: ScalarHead, trees: list[Tree]) -> Tensor:
    model = TreeModel(lm.eval(), probe(lm), head)
    lay_out = lay_out_padded if model.traits.method == "padded" else lay_out_tree
    found = model(lay_out(trees), Want(logprobs=False, scores=True)).scores
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "opt", "falcon", "bloom", "gemma2"])
def test_a_reward_model_is_a_sequence_classifier_to_others(
    tiny: Tiny, trees: list[Tree], name: str, tmp_path: Path
) -> None:
    lm, head = tiny(name), ScalarHead(32)
    truth = scores(lm, head, trees)
    save_model(tmp_path, TreeModel(lm, probe(lm), head), None)
    assert not (tmp_path / HEAD_FILE).exists()
    again = read_scalar_head(str(tmp_path))
    assert again is not None
    assert torch.equal(again.weight, head.weight)
    torch.testing.assert_close(scores(load_lm(str(tmp_path)), again, trees), truth, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert "espalier" not in json.dumps(config)
    other = AutoModelForSequenceClassification.from_pretrained(str(tmp_path)).eval()
    assert other.config.num_labels == 1
    with torch.no_grad():
        theirs = [
            other(input_ids=torch.from_numpy(tokens)[None]).logits[0, 0]
            for tree in trees
            for tokens, _ in tree.paths()
        ]
    torch.testing.assert_close(torch.stack(theirs), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "codegen"])  # a classifier, and a head in a file of its own
def test_equal_reward_models_are_equal_files(tiny: Tiny, name: str, tmp_path: Path) -> None:
    """A run that is done again must leave what later stages know it by; safetensors orders notes by chance."""
    model = TreeModel(lm := tiny(name), probe(lm), ScalarHead(32, "answer"))
    files = set()
    for _ in range(10):
        save_model(tmp_path, model, None)
        files.add(tuple((file.name, file.read_bytes()) for file in sorted(tmp_path.iterdir())))
    assert len(files) == 1 and (tmp_path / HEAD_FILE).exists() == (name == "codegen")
    again = read_scalar_head(str(tmp_path))
    assert again is not None and again.score_at == "answer"
    assert torch.equal(again.weight, model.scalar_head.weight)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
def test_others_read_the_same_score_in_a_padded_batch_where_padding_was_the_end(
    tiny: Tiny, name: str, tmp_path: Path
) -> None:
    end = 2
    lm, head = tiny(name, pad_token_id=end), ScalarHead(32)
    lm.config.pad_token_id = end
    paths = [[5, 6, 7, 8, end], [5, 6, end], [9, 10, 11, end]]
    trees = [Tree.from_path(path, [False] + [True] * (len(path) - 1)) for path in paths]
    truth = scores(lm, head, trees)
    save_model(tmp_path, TreeModel(lm, probe(lm), head), None, ends=(end,))
    other = AutoModelForSequenceClassification.from_pretrained(str(tmp_path)).eval()
    pad = other.config.pad_token_id
    assert pad != end
    rows = torch.tensor([path + [pad] * (5 - len(path)) for path in paths])
    with torch.no_grad():
        theirs = other(input_ids=rows, attention_mask=(rows != pad).long()).logits[:, 0]
        other.config.pad_token_id = end
        early = other(input_ids=rows, attention_mask=(rows != pad).long()).logits[:, 0]
    torch.testing.assert_close(theirs, truth, rtol=1e-5, atol=1e-5)
    assert float((early - truth).abs().max()) > 1e-4, "as it was read before"


def test_the_tokenizer_of_a_reward_model_pads_with_the_same(tiny: Tiny, tmp_path: Path) -> None:
    lm, head = tiny("llama"), ScalarHead(32)
    lm.config.eos_token_id = [2, 3]
    tokenizer = train_tokenizer(["some text"] * 9, 300)
    tokenizer.pad_token = tokenizer.eos_token
    save_model(tmp_path, TreeModel(lm, probe(lm), head), tokenizer, ends=(4,))
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert again.pad_token_id == config["pad_token_id"] not in (2, 3, 4, again.eos_token_id)
    assert tokenizer.pad_token == tokenizer.eos_token, "the policy's own stays"


def test_without_a_classifier_class_the_head_lies_beside_the_weights(
    tiny: Tiny, trees: list[Tree], tmp_path: Path
) -> None:
    lm, head = tiny("codegen"), ScalarHead(32)
    truth = scores(lm, head, trees)
    save_model(tmp_path, TreeModel(lm, probe(lm), head), None)
    assert (tmp_path / HEAD_FILE).is_file()
    again = read_scalar_head(str(tmp_path))
    assert again is not None
    torch.testing.assert_close(scores(load_lm(str(tmp_path)), again, trees), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom"])
def test_a_language_model_round_trips(tiny: Tiny, name: str, tmp_path: Path) -> None:
    lm = tiny(name)
    truth = logits(lm)
    model = TreeModel(lm, probe(lm))
    own = lm.config._attn_implementation
    save_model(tmp_path, model, None)
    assert lm.config._attn_implementation == own
    torch.testing.assert_close(logits(load_lm(str(tmp_path))), truth)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(str(tmp_path))), truth)
    assert read_scalar_head(str(tmp_path)) is None
    assert not list(tmp_path.glob("*.bin"))


def test_whole_tensors_win_over_the_models_own(tiny: Tiny, tmp_path: Path) -> None:
    lm, head = tiny("llama"), ScalarHead(32)
    whole = {"lm.model.norm.weight": torch.full((32,), 3.0), "scalar_head.weight": torch.full((1, 32), 2.0)}
    save_model(tmp_path, TreeModel(lm, probe(lm), head), None, whole)
    again = read_scalar_head(str(tmp_path))
    assert again is not None
    assert (again.weight == 2.0).all()
    assert (load_lm(str(tmp_path)).model.norm.weight == 3.0).all()


@pytest.mark.parametrize("with_head", [False, True])
def test_an_adapter_folder_loads_merged_into_its_base(
    tiny: Tiny, trees: list[Tree], tmp_path: Path, with_head: bool
) -> None:
    base = tiny("llama")
    for folder in ("base", "adapter"):
        (tmp_path / folder).mkdir()
    save_model(tmp_path / "base", TreeModel(base, probe(base)), None)
    lm = add_lora(load_lm(str(tmp_path / "base")), rank=2, alpha=None, dropout=0.1, target=None, bias="none")
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    truth = logits(lm)
    assert (truth - logits(base)).abs().max() > 0.01
    head = ScalarHead(32) if with_head else None
    save_model(tmp_path / "adapter", TreeModel(lm, probe(lm), head), None)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 60_000
    again = load_with_adapter(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again), truth, rtol=1e-4, atol=1e-5)
    read = read_scalar_head(str(tmp_path / "adapter"))
    assert (read is not None) == with_head
    if head is not None and read is not None:
        torch.testing.assert_close(scores(again, read, trees), scores(lm, head, trees), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(load_with_adapter(str(tmp_path / "base"))), logits(base))


def test_other_programs_stop_where_answers_were_trained_to_end(tiny: Tiny, tmp_path: Path) -> None:
    """A base that ends texts with token 2, trained with a template that ends answers with token 7."""
    base = tiny("llama")
    for folder in ("base", "trained", "adapter", "merged"):
        (tmp_path / folder).mkdir()
    save_model(tmp_path / "base", TreeModel(base, probe(base)), None)
    save_model(tmp_path / "trained", TreeModel(base, probe(base)), None, ends=(2, 7))
    lm = add_lora(load_lm(str(tmp_path / "base")), rank=2, alpha=None, dropout=0.0, target=None, bias="none")
    save_model(tmp_path / "adapter", TreeModel(lm, probe(lm)), None, ends=(7,))
    merged = load_with_adapter(str(tmp_path / "adapter"))
    save_model(tmp_path / "merged", TreeModel(merged, probe(merged)), None)

    def length(folder: str) -> int:
        """New tokens that transformers itself generates where token 7 is by far the likeliest."""
        other: Any = AutoModelForCausalLM.from_pretrained(str(tmp_path / folder))
        other.lm_head = nn.Linear(32, 99)
        nn.init.zeros_(other.lm_head.weight)
        other.lm_head.bias.data = 10.0 * (torch.arange(99) == 7)
        return int(other.generate(IDS, max_new_tokens=4, do_sample=False).shape[1]) - IDS.shape[1]

    assert [length(folder) for folder in ("base", "trained", "merged")] == [4, 1, 1]


def test_no_head_where_there_is_no_folder_or_several_labels(tiny: Tiny, tmp_path: Path) -> None:
    assert read_scalar_head("some/hub-id") is None
    lm = tiny("llama")
    config = copy.deepcopy(lm.config)
    config.num_labels = 3
    other = AutoModelForSequenceClassification.from_config(config)
    other.save_pretrained(str(tmp_path))
    assert read_scalar_head(str(tmp_path)) is None
