"""Further shapes of old checkpoints: another head count, tying, base or name, each as its own code would write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CodeGenConfig, CodeGenForCausalLM, LlamaConfig, LlamaForCausalLM

import espalier
from tests.conftest import Golden
from tests.models.legacy.plain import IDS, TOLERANCE, State, check, write
from tests.models.legacy.test_native_variants import qwen_logits, qwen_state
from tests.models.legacy.test_variants import (
    baichuan_logits,
    baichuan_state,
    chatglm2_logits,
    chatglm2_state,
    shake,
)

BAICHUAN = {"model_type": "baichuan", "vocab_size": 64, "intermediate_size": 20, "num_hidden_layers": 2}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("heads", [4, 8])
def test_baichuan_7b(tied: bool, heads: int, tmp_path: Path) -> None:
    c: dict[str, Any] = {**BAICHUAN, "architectures": ["BaiChuanForCausalLM"], "num_attention_heads": heads}
    c |= {"hidden_size": 32, "rms_norm_eps": 1e-5, "max_position_embeddings": 64}
    if not tied:
        c["tie_word_embeddings"] = False
    state = baichuan_state(c)
    for i in range(2):
        state[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    expected = baichuan_logits(c, state, IDS, alibi=False, norm_head=False)
    model = check(write(tmp_path / "old", c, state), tmp_path, expected)
    assert type(model) is LlamaForCausalLM
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["xverse", "aquila"])
def test_llamas_by_another_name(family: str, tied: bool, tmp_path: Path) -> None:
    kept = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 20, "num_hidden_layers": 2}
    kept |= {"num_attention_heads": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 32}
    own: dict[str, Any] = {"num_key_value_heads": 2} if family == "aquila" else {}
    rotary = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}} if family == "aquila" else {}
    llama = LlamaForCausalLM(LlamaConfig(**kept, **own, **rotary, tie_word_embeddings=tied)).eval()
    shake(llama)
    config: dict[str, Any] = {**kept, **own, "model_type": family, "pad_token_id": None, "pretraining_tp": 1}
    if family == "aquila":
        config["rope_theta"] = 5e4
    if not tied:
        config["tie_word_embeddings"] = False
    check(write(tmp_path / "old", config, llama.state_dict()), tmp_path, llama(IDS).logits.detach())


@pytest.mark.parametrize(
    "options",
    [
        {"n_embd": 32, "n_head": 4, "rotary_dim": 4, "n_inner": None, "activation_function": "gelu_new"},
        {"n_embd": 64, "n_head": 8, "rotary_dim": 8, "n_inner": 48, "activation_function": "gelu"},
    ],
)
def test_moss(options: dict[str, Any], tmp_path: Path) -> None:
    kept = {
        "vocab_size": 64,
        "n_layer": 2,
        "n_positions": 64,
        "n_ctx": 64,
        "layer_norm_epsilon": 1e-6,
        **options,
    }
    lm = CodeGenForCausalLM(CodeGenConfig(**kept, tie_word_embeddings=False)).eval()
    shake(lm)
    state = dict(lm.state_dict())
    for i in range(2):
        state[f"transformer.h.{i}.attn.causal_mask"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
    config = {
        **kept,
        "model_type": "moss",
        "architectures": ["MossForCausalLM"],
        "tie_word_embeddings": False,
    }
    check(write(tmp_path / "old", config, state), tmp_path, lm(IDS).logits.detach())


@pytest.mark.parametrize("first_release", [False, True])
def test_qwen_with_a_narrow_head_in_both_key_sets(first_release: bool, tmp_path: Path) -> None:
    c: dict[str, Any] = {
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "kv_channels": 6,
        "num_attention_heads": 6,
    }
    c |= {"intermediate_size": 40, "layer_norm_epsilon": 1e-6, "seq_length": 6, "rotary_emb_base": 50000}
    c |= {"use_dynamic_ntk": True, "use_logn_attn": False}
    state = qwen_state(c)
    written = dict(c)
    if first_release:
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        names |= {"intermediate_size": "ffn_hidden_size"}
        written = {names.get(key, key): value for key, value in c.items()}
        written |= {"n_positions": 64, "padded_vocab_size": 64}
    written |= {"model_type": "qwen", "vocab_size": 64, "no_bias": True, "tie_word_embeddings": False}
    written |= {"fp16": False, "bf16": False, "fp32": False, "use_flash_attn": "auto", "rotary_pct": 1.0}
    expected = qwen_logits(c, state, IDS[0], IDS.shape[1])[None]
    check(write(tmp_path / "old", written, state), tmp_path, expected)


@pytest.mark.parametrize("name", ["ChatGLMModel", "ChatGLMForConditionalGeneration"])
def test_chatglm2_wider_than_its_hidden_size(name: str, tmp_path: Path) -> None:
    c: dict[str, Any] = {"model_type": "chatglm", "architectures": [name], "padded_vocab_size": 64}
    c |= {"num_layers": 3, "num_attention_heads": 8, "kv_channels": 12, "hidden_size": 32}
    c |= {"ffn_hidden_size": 24, "multi_query_attention": True, "multi_query_group_num": 4, "seq_length": 64}
    c |= {"add_qkv_bias": False, "layernorm_epsilon": 1e-6, "tie_word_embeddings": False}
    state = chatglm2_state(c)
    check(write(tmp_path / "old", c, state), tmp_path, chatglm2_logits(c, state, IDS))


# --- the golden checkpoints, stored in other ways ------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        "pangu",
        "glm",
        "chatglm",
        "chatglm2",
        "baichuan_13b",
        "baichuan2_7b",
        "qwen",
        "qwen_v0",
        "internlm",
        "moss",
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_of_every_layout(family: str, kind: str, golden: Golden, tmp_path: Path) -> None:
    """Three shards whose tensors are dealt out one by one, so that no layer is whole in a file."""
    source = golden(family)
    state: State = load_file(source / "model.safetensors")
    old = tmp_path / "old"
    old.mkdir()
    config = json.loads((source / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config))
    stem, ending = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    names = sorted(state)
    places: dict[str, str] = {}
    for i in range(3):
        part = {name: state[name] for name in names[i::3]}
        file = f"{stem}-{i + 1:05}-of-00003{ending}"
        (save_file if kind == "safetensors" else torch.save)(part, old / file)  # type: ignore[operator]
        places |= dict.fromkeys(part, file)
    (old / f"{stem}{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    whole, sharded = (
        espalier.load_model(str(folder), device="cpu", allow_pickle=True)[0] for folder in (source, old)
    )
    with torch.no_grad():
        assert torch.equal(whole(input_ids=IDS).logits, sharded(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("family", "prefix", "name"),
    [
        ("glm", "glm.", "GLMForConditionalGeneration"),
        ("glm", "", "GLMModel"),
        ("chatglm", "", "ChatGLMForConditionalGeneration"),
        ("chatglm", "", "ChatGLMModel"),
        ("pangu", "", "GPTPanguForCausalLM"),
    ],
)
def test_the_name_of_the_class_does_not_matter(
    family: str, prefix: str, name: str, golden: Golden, tmp_path: Path
) -> None:
    source = golden(family)
    state = {prefix + key: tensor for key, tensor in load_file(source / "model.safetensors").items()}
    config = json.loads((source / "config.json").read_text()) | {"architectures": [name]}
    config["auto_map"] = {"AutoModel": f"modeling.{name}", "AutoConfig": "configuration.Config"}
    plain, renamed = (
        espalier.load_model(str(folder), device="cpu")[0]
        for folder in (source, write(tmp_path / "old", config, state))
    )
    with torch.no_grad():
        assert torch.equal(plain(input_ids=IDS).logits, renamed(input_ids=IDS).logits)


@pytest.mark.parametrize("family", ["glm", "chatglm", "pangu"])
def test_half_precision_files_train_and_answer_as_their_floats(
    family: str, golden: Golden, tmp_path: Path
) -> None:
    source = golden(family)
    state = {
        key: tensor.half() if tensor.is_floating_point() else tensor
        for key, tensor in load_file(source / "model.safetensors").items()
    }
    config = json.loads((source / "config.json").read_text()) | {"torch_dtype": "float16"}
    model, _ = espalier.load_model(str(write(tmp_path / "old", config, state)), device="cpu")
    rounded = {k: t.float() if t.is_floating_point() else t for k, t in state.items()}
    truth, _ = espalier.load_model(str(write(tmp_path / "float", config, rounded)), device="cpu")
    logits = model(input_ids=IDS).logits
    assert logits.dtype == torch.float32
    assert (logits - truth(input_ids=IDS).logits).abs().max() < TOLERANCE
    F.cross_entropy(logits[0, :-1], IDS[0, 1:]).backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
