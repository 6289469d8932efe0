"""Reward models in the layouts of earlier projects, written here, against the backbone and the head by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from espalier.errors import UserError
from espalier.models.adapters.adapter import add_lora
from espalier.models.convert import convert_folder
from espalier.models.forward import Want
from espalier.models.load import load_lm
from espalier.models.open import open_model
from espalier.trees.batch import lay_out_padded
from espalier.trees.tree import Tree
from tests.conftest import Golden

SIZES: dict[str, dict[str, Any]] = {
    "opt": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
              "tie_word_embeddings": False},
}  # fmt: skip
IDS = [[5, 9, 17, 30, 2], [5, 9, 40, 8, 11, 23, 2], [7, 2]]


def config_of(kind: str) -> Any:
    return AutoConfig.for_model(kind, vocab_size=64, initializer_range=0.2, **SIZES[kind])


def written(folder: Path, config: dict[str, Any], state: dict[str, Tensor], pickled: bool) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    state = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    return folder


@torch.no_grad()
def scores_of(folder: Path, **how: Any) -> Tensor:
    opened = open_model(str(folder), device="cpu", **how)
    assert opened.scalar_head is not None
    batch = lay_out_padded([Tree.from_path(ids, [False] * len(ids)) for ids in IDS])
    scores = opened.tree_model().eval()(batch, Want(logprobs=False, scores=True)).scores
    assert scores is not None
    return scores


@torch.no_grad()
def by_hand(states: Any, head: nn.Linear) -> Tensor:
    """What the head says of the last token of each row, of a function from ids to last hidden states."""
    return torch.stack([head(states(torch.tensor([ids]))[0, -1])[0] for ids in IDS])


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("wrapper", ["rwtranrsformer.", "rwtransformer."])
@pytest.mark.parametrize("kind", SIZES)
def test_deepspeed_chat(kind: str, wrapper: str, pickled: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = config_of(kind)
    backbone = AutoModel.from_config(config).eval()
    head = nn.Linear(getattr(config, "word_embed_proj_dim", config.hidden_size), 1, bias=False)
    state = {wrapper + name: tensor for name, tensor in backbone.state_dict().items()}
    if kind == "gpt2":
        state[f"{wrapper}h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()  # as old versions saved it
    folder = written(tmp_path / "rm", config.to_dict(), state | {"v_head.weight": head.weight}, pickled)
    wanted = by_hand(lambda ids: backbone(input_ids=ids).last_hidden_state, head)
    found = scores_of(folder, allow_pickle=pickled)
    assert (found - wanted).abs().max() < 1e-5 and wanted.std() > 1e-2


@pytest.mark.parametrize("outer", ["", "transformer."])
def test_pangu(outer: str, golden: Golden, tmp_path: Path) -> None:
    """`outer`: whether the head was put on the backbone or on the whole language model."""
    source = golden("pangu")
    lm: Any = load_lm(str(source)).eval()
    torch.manual_seed(2)
    head = nn.Linear(lm.config.hidden_size, 1, bias=False)
    state = {outer + name: t for name, t in load_file(source / "model.safetensors").items()}
    if not outer:
        state.pop("lm_head.weight", None)
    config = json.loads((source / "config.json").read_text("utf-8"))
    folder = written(tmp_path / "rm", config, state | {"v_head.weight": head.weight}, False)
    wanted = by_hand(lambda ids: lm.transformer(input_ids=ids).last_hidden_state, head)
    assert (scores_of(folder) - wanted).abs().max() < 1e-5 and wanted.std() > 1e-2
    out = tmp_path / "plain"
    convert_folder(folder, out)
    assert (scores_of(out) - wanted).abs().max() < 1e-5


def test_a_value_head_of_trl(tmp_path: Path) -> None:
    """Its bias is part of every score, here, converted and in a score that is asked for again."""
    torch.manual_seed(3)
    config = config_of("gpt2")
    lm = AutoModelForCausalLM.from_config(config).eval()
    head = nn.Linear(32, 1)
    assert head.bias is not None
    state = {name: t for name, t in lm.state_dict().items() if name != "lm_head.weight"}
    state |= {"v_head.summary.weight": head.weight, "v_head.summary.bias": head.bias}
    folder = written(tmp_path / "rm", config.to_dict(), state, False)
    wanted = by_hand(lambda ids: lm.transformer(input_ids=ids).last_hidden_state, head)
    assert (scores_of(folder) - wanted).abs().max() < 1e-5
    assert (
        wanted - by_hand(lambda ids: lm.transformer(input_ids=ids).last_hidden_state, _bare(head))
    ).abs().min() > 1e-3
    convert_folder(folder, tmp_path / "plain")
    assert (scores_of(tmp_path / "plain") - wanted).abs().max() < 1e-5


def _bare(head: nn.Linear) -> nn.Linear:
    made = nn.Linear(head.in_features, 1, bias=False)
    made.weight = head.weight
    return made


@pytest.mark.parametrize("name", ["vhead.bin", "value_head.bin", "value_head.safetensors"])
def test_an_adapter_with_its_head_beside_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_config(config_of("llama")).save_pretrained(str(base))
    adapted: Any = add_lora(load_lm(str(base)), rank=2, alpha=8, dropout=0.0, target=["all"], bias="none")
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.2)
    folder = tmp_path / "rm"
    adapted.save_pretrained(str(folder))
    settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    settings["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    head = nn.Linear(32, 1)
    state = {"v_head.summary.weight": head.weight.data, "v_head.summary.bias": head.bias.data}
    if name.endswith(".bin"):
        torch.save(state, folder / name)
        with pytest.raises(UserError, match=rf"{name}: the weights are pickles"):
            open_model(str(folder), device="cpu")
    else:
        save_file(state, folder / name)
    adapted.eval()
    inner = adapted.get_base_model().model
    wanted = by_hand(lambda ids: inner(input_ids=ids).last_hidden_state, head)
    found = scores_of(folder, allow_pickle=name.endswith(".bin"))
    assert (found - wanted).abs().max() < 1e-4 and wanted.std() > 1e-2


def test_a_converted_one_is_read_by_transformers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = config_of("llama")
    backbone = AutoModel.from_config(config).eval()
    head = nn.Linear(32, 1, bias=False)
    state = {f"rwtranrsformer.{name}": t for name, t in backbone.state_dict().items()}
    folder = written(tmp_path / "rm", config.to_dict(), state | {"v_head.weight": head.weight}, False)
    convert_folder(folder, tmp_path / "plain")
    other: Any = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "plain")).eval()
    with torch.no_grad():
        found = torch.stack([other(input_ids=torch.tensor([ids])).logits[0, 0] for ids in IDS])
    wanted = by_hand(lambda ids: backbone(input_ids=ids).last_hidden_state, head)
    assert (found - wanted).abs().max() < 1e-5


def test_what_does_not_fit_is_refused(tmp_path: Path, golden: Golden) -> None:
    config = config_of("gpt2")
    state = {f"rwtranrsformer.{n}": t for n, t in AutoModel.from_config(config).state_dict().items()}
    head = {"v_head.weight": torch.zeros(1, 32)}
    short = {name: t for name, t in state.items() if "h.1.ln_2.bias" not in name}
    with pytest.raises(UserError, match=r"the checkpoint lacks 1 tensors \(transformer\.h\.1\.ln_2\.bias"):
        open_model(str(written(tmp_path / "short", config.to_dict(), short | head, False)), device="cpu")
    deep = head | {"v_head.dense.weight": torch.zeros(32, 32)}
    with pytest.raises(UserError, match="is no linear layer from hidden states to one number"):
        open_model(str(written(tmp_path / "deep", config.to_dict(), state | deep, False)), device="cpu")
    folder = written(tmp_path / "pickled", config.to_dict(), state | head, True)
    with pytest.raises(UserError, match="the weights are pickles"):
        open_model(str(folder), device="cpu")
    source = golden("glm")
    glm = load_file(source / "model.safetensors") | {"v_head.weight": torch.zeros(1, 64)}
    old = json.loads((source / "config.json").read_text("utf-8"))
    with pytest.raises(UserError, match="before the last normalisation"):
        open_model(str(written(tmp_path / "glm", old, glm, False)), device="cpu")
