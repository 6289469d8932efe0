"""Checkpoints with other shapes and options than the golden ones, against plain computations of our own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, RwkvConfig, RwkvForCausalLM

import espalier
from espalier.errors import UserError
from espalier.models.convert import convert_folder
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample
from tests.models.legacy.plain import IDS, TOLERANCE, State, attention, check, rand, rms, write

# --- ChatGLM2: groups, widths, biases ---------------------------------------------------------------


def chatglm2_state(c: dict[str, Any]) -> State:
    heads, size, hidden = c["num_attention_heads"], c["kv_channels"], c["hidden_size"]
    groups = c["multi_query_group_num"] if c["multi_query_attention"] else heads
    rows = (heads + 2 * groups) * size
    state = {
        "transformer.embedding.word_embeddings.weight": rand(c["padded_vocab_size"], hidden, std=0.5),
        "transformer.encoder.final_layernorm.weight": 1 + rand(hidden),
        "transformer.output_layer.weight": rand(c["padded_vocab_size"], hidden),
        "transformer.rotary_pos_emb.inv_freq": torch.ones(size // 4),
    }
    for i in range(c["num_layers"]):
        at = f"transformer.encoder.layers.{i}."
        state[at + "input_layernorm.weight"] = 1 + rand(hidden)
        state[at + "post_attention_layernorm.weight"] = 1 + rand(hidden)
        state[at + "self_attention.query_key_value.weight"] = rand(rows, hidden, std=0.3)
        if c["add_qkv_bias"]:
            state[at + "self_attention.query_key_value.bias"] = rand(rows)
        state[at + "self_attention.dense.weight"] = rand(hidden, heads * size)
        state[at + "mlp.dense_h_to_4h.weight"] = rand(2 * c["ffn_hidden_size"], hidden)
        state[at + "mlp.dense_4h_to_h.weight"] = rand(hidden, c["ffn_hidden_size"])
    return state


def chatglm2_logits(c: dict[str, Any], state: State, ids: Tensor) -> Tensor:
    heads, size = c["num_attention_heads"], c["kv_channels"]
    groups = c["multi_query_group_num"] if c["multi_query_attention"] else heads
    eps, length = c["layernorm_epsilon"], ids.shape[1]
    x = state["transformer.embedding.word_embeddings.weight"][ids[0]]
    half = size // 2
    base = 10000.0 * c.get("rope_ratio", 1)
    angles = torch.arange(length)[:, None] / base ** (torch.arange(0, half, 2) / half)

    def rotate(part: Tensor) -> Tensor:  # (H, T, D): pairs (0, 1), (2, 3), ... of the first half
        a, b = part[..., 0:half:2], part[..., 1:half:2]
        turned = torch.stack([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)
        return torch.cat([turned.flatten(-2), part[..., half:]], -1)

    for i in range(c["num_layers"]):
        at = f"transformer.encoder.layers.{i}."
        normed = rms(x, state[at + "input_layernorm.weight"], eps)
        name = at + "self_attention.query_key_value."
        mixed = F.linear(normed, state[name + "weight"], state.get(name + "bias"))
        if c["multi_query_attention"]:
            q, k, v = mixed.split([heads * size, groups * size, groups * size], -1)
            q, k, v = (t.view(length, -1, size).transpose(0, 1) for t in (q, k, v))
        else:
            q, k, v = mixed.view(length, heads, 3 * size).transpose(0, 1).split(size, -1)
        k, v = (t.repeat_interleave(heads // groups, 0) for t in (k, v))
        mixed = attention(rotate(q), rotate(k), v).transpose(0, 1).reshape(length, -1)
        x = x + mixed @ state[at + "self_attention.dense.weight"].T
        normed = rms(x, state[at + "post_attention_layernorm.weight"], eps)
        gate, up = (normed @ state[at + "mlp.dense_h_to_4h.weight"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ state[at + "mlp.dense_4h_to_h.weight"].T
    x = rms(x, state["transformer.encoder.final_layernorm.weight"], eps)
    return (x @ state["transformer.output_layer.weight"].T)[None]


@pytest.mark.parametrize(
    "options",
    [
        {"multi_query_group_num": 1},
        {"multi_query_group_num": 4, "add_qkv_bias": False, "layernorm_epsilon": 1e-3},
        {"multi_query_attention": False},
        {"kv_channels": 12, "hidden_size": 40},
        {"rope_ratio": 50},
    ],
)
def test_chatglm2_with_other_groups(options: dict[str, Any], tmp_path: Path) -> None:
    config = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "padded_vocab_size": 64,
        "num_layers": 2,
        "num_attention_heads": 8,
        "kv_channels": 8,
        "hidden_size": 32,
        "ffn_hidden_size": 24,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "add_qkv_bias": True,
        "layernorm_epsilon": 1e-5,
        "seq_length": 64,
        "tie_word_embeddings": False,
        **options,
    }
    state = chatglm2_state(config)
    check(write(tmp_path / "old", config, state), tmp_path, chatglm2_logits(config, state, IDS))


@pytest.mark.parametrize("options", [{"quantization_bit": 4}, {"rmsnorm": False}, {"pre_seq_len": 128}])
def test_what_cannot_be_converted_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    config = {"model_type": "chatglm", "num_attention_heads": 2, "ffn_hidden_size": 8, **options}
    folder = write(tmp_path, config, {"x": torch.zeros(1)})
    with pytest.raises(UserError, match=next(iter(options))):
        espalier.load_model(str(folder))


# --- Baichuan: ALiBi with any number of heads, NormHead, tied, z-loss --------------------------------


def baichuan_state(c: dict[str, Any]) -> State:
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    state = {
        "model.embed_tokens.weight": rand(c["vocab_size"], hidden, std=0.5),
        "model.norm.weight": 1 + rand(hidden),
        "lm_head.weight": rand(c["vocab_size"], hidden),
    }
    if c.get("tie_word_embeddings", True):
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        state |= {
            at + "input_layernorm.weight": 1 + rand(hidden),
            at + "post_attention_layernorm.weight": 1 + rand(hidden),
            at + "self_attn.W_pack.weight": rand(3 * hidden, hidden, std=0.3),
            at + "self_attn.o_proj.weight": rand(hidden, hidden),
            at + "mlp.gate_proj.weight": rand(inner, hidden),
            at + "mlp.up_proj.weight": rand(inner, hidden),
            at + "mlp.down_proj.weight": rand(hidden, inner),
        }
    return state


def alibi_slopes(heads: int) -> list[float]:
    if math.log2(heads).is_integer():
        return [2 ** (-8 / heads * (i + 1)) for i in range(heads)]
    lower = 2 ** math.floor(math.log2(heads))
    return alibi_slopes(lower) + alibi_slopes(2 * lower)[0::2][: heads - lower]


def baichuan_logits(c: dict[str, Any], state: State, ids: Tensor, *, alibi: bool, norm_head: bool) -> Tensor:
    heads, length = c["num_attention_heads"], ids.shape[1]
    size, eps = c["hidden_size"] // heads, c["rms_norm_eps"]
    x = state["model.embed_tokens.weight"][ids[0]]
    places = torch.arange(length)
    bias = None
    if alibi:
        distance = (places[None] - places[:, None]).float()
        bias = torch.tensor(alibi_slopes(heads))[:, None, None] * distance
    angles = places[:, None] / 10000 ** (torch.arange(0, size, 2) / size)
    angles = torch.cat([angles, angles], -1)

    def rotate(part: Tensor) -> Tensor:
        if alibi:
            return part
        a, b = part.chunk(2, -1)
        return part * angles.cos() + torch.cat([-b, a], -1) * angles.sin()

    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        normed = rms(x, state[at + "input_layernorm.weight"], eps)
        mixed = (normed @ state[at + "self_attn.W_pack.weight"].T).chunk(3, -1)
        q, k, v = (t.view(length, heads, size).transpose(0, 1) for t in mixed)
        found = attention(rotate(q), rotate(k), v, bias).transpose(0, 1).reshape(length, -1)
        x = x + found @ state[at + "self_attn.o_proj.weight"].T
        normed = rms(x, state[at + "post_attention_layernorm.weight"], eps)
        gate = F.silu(normed @ state[at + "mlp.gate_proj.weight"].T)
        up = normed @ state[at + "mlp.up_proj.weight"].T
        x = x + (gate * up) @ state[at + "mlp.down_proj.weight"].T
    x = rms(x, state["model.norm.weight"], eps)
    head = state["lm_head.weight"]
    return (x @ (F.normalize(head) if norm_head else head).T)[None]


SIZES = {"model_type": "baichuan", "vocab_size": 64, "intermediate_size": 20, "num_hidden_layers": 2}
SECOND = {"architectures": ["BaichuanForCausalLM"], "z_loss_weight": 0}


@pytest.mark.parametrize("heads", [3, 5, 6, 8])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_baichuan_13b(heads: int, second: bool, tied: bool, tmp_path: Path) -> None:
    config = {**SIZES, **SECOND, "num_attention_heads": heads, "hidden_size": heads * 4, "rms_norm_eps": 1e-5}
    config |= {"model_max_length": 24, "gradient_checkpointing": [False]}
    if not tied:  # an absent key means tied
        config["tie_word_embeddings"] = False
    if not second:
        del config["z_loss_weight"]
    state = baichuan_state(config)
    folder = write(tmp_path / "old", config, state)
    expected = baichuan_logits(config, state, IDS, alibi=True, norm_head=second)
    model = check(folder, tmp_path, expected)
    assert probe(model).method == "pieces"
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_alibi_beyond_a_block_of_positions(tmp_path: Path) -> None:
    config = {**SIZES, **SECOND, "num_attention_heads": 6, "hidden_size": 24, "rms_norm_eps": 1e-6}
    config |= {"model_max_length": 24, "tie_word_embeddings": False}
    state = baichuan_state(config)
    folder = write(tmp_path / "old", config, state)
    ids = torch.randint(3, 64, (1, 600))
    expected = baichuan_logits(config, state, ids, alibi=True, norm_head=True)
    # slope * position is rounded at its own size, in the original as here
    check(folder, tmp_path, expected, ids, tolerance=1e-4)


@pytest.mark.parametrize("weight", [0, 2e-3])
@pytest.mark.parametrize("tied", [False, True])
def test_baichuan2_7b_and_its_z_loss(weight: float, tied: bool, tmp_path: Path) -> None:
    config = {**SIZES, **SECOND, "num_attention_heads": 4, "hidden_size": 24, "rms_norm_eps": 1e-6}
    config |= {"max_position_embeddings": 64, "model_max_length": 64, "z_loss_weight": weight}
    if not tied:
        config["tie_word_embeddings"] = False
    state = baichuan_state(config)
    folder = write(tmp_path / "old", config, state)
    expected = baichuan_logits(config, state, IDS, alibi=False, norm_head=True)
    model = check(folder, tmp_path, expected)
    assert isinstance(model, LlamaForCausalLM)
    assert (model.config.model_type == "llama") == (weight == 0 and not tied)
    labels = IDS.clone()
    labels[0, :3] = -100
    loss = F.cross_entropy(expected[0, :-1], labels[0, 1:])
    loss = loss + weight * expected[0, :-1].amax(-1).square().mean()
    assert float(model(input_ids=IDS, labels=labels).loss.detach()) == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_normalised_head_of_a_larger_vocabulary_is_one(tied: bool, tmp_path: Path) -> None:
    config = {**SIZES, **SECOND, "num_attention_heads": 4, "hidden_size": 24, "rms_norm_eps": 1e-6}
    config |= {"model_max_length": 24, "tie_word_embeddings": tied}
    model: Any = espalier.load_model(str(write(tmp_path, config, baichuan_state(config))), device="cpu")[0]
    before = model(input_ids=IDS).logits
    model.resize_token_embeddings(70)
    after = model(input_ids=IDS).logits
    assert after.shape[-1] == 70
    assert (after[..., :64] - before).abs().max() < TOLERANCE


def test_half_precision_masks_of_segments(tmp_path: Path) -> None:
    config = {**SIZES, **SECOND, "num_attention_heads": 4, "hidden_size": 32, "rms_norm_eps": 1e-6}
    config |= {"model_max_length": 24, "tie_word_embeddings": False}
    folder = write(tmp_path / "old", config, baichuan_state(config))
    mask = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 0]])
    exact, _ = espalier.load_model(str(folder), device="cpu")
    half, _ = espalier.load_model(str(folder), device="cpu", dtype="float16")
    a, b = (m(input_ids=IDS, attention_mask=mask).logits[0, :12] for m in (exact, half))
    assert (a - b.float()).abs().max() < 0.03
    alone = exact(input_ids=IDS[:, 3:7]).logits[0]
    assert (a[3:7] - alone).abs().max() < TOLERANCE


# --- the others, through the transformers model that they become ---------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_internlm_with_and_without_biases(bias: bool, tied: bool, tmp_path: Path) -> None:
    kept = {"vocab_size": 64, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
    kept |= {"num_attention_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 32}
    llama = LlamaForCausalLM(LlamaConfig(**kept, attention_bias=bias, tie_word_embeddings=tied)).eval()
    shake(llama)
    config = {**kept, "model_type": "internlm", "bias": bias}
    if not tied:
        config["tie_word_embeddings"] = False
    check(write(tmp_path / "old", config, llama.state_dict()), tmp_path, llama(IDS).logits.detach())


@pytest.mark.parametrize(
    "scaling", [None, {"type": "linear", "factor": 4.0}, {"type": "dynamic", "factor": 2.0}]
)
def test_aquila_with_groups_and_scaled_positions(scaling: dict[str, Any] | None, tmp_path: Path) -> None:
    kept = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 20, "num_hidden_layers": 2}
    kept |= {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 8}
    new = None if scaling is None else {"rope_type": scaling["type"], "factor": scaling["factor"]}
    llama = LlamaForCausalLM(
        LlamaConfig(**kept, rope_parameters={"rope_type": "default", **(new or {}), "rope_theta": 5e4})
    ).eval()
    shake(llama)
    config = {**kept, "model_type": "aquila", "rope_theta": 5e4, "rope_scaling": scaling}
    config["tie_word_embeddings"] = False
    check(write(tmp_path / "old", config, llama.state_dict()), tmp_path, llama(IDS).logits.detach())


def shake(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.2)


def rwkv_original(state: State) -> State:
    back = {"embeddings.": "emb.", ".pre_ln.": ".ln0.", ".attention.": ".att.", ".feed_forward.": ".ffn."}
    found = {}
    for name, tensor in state.items():
        name = name.removeprefix("rwkv.")
        for new, old in back.items():
            name = name.replace(new, old)
        for part in ("key", "value", "receptance"):
            name = name.replace(f"time_mix_{part}", f"time_mix_{part[0]}")
        found[name] = tensor
    return found


@pytest.mark.slow
@pytest.mark.parametrize("as_file", [False, True])
def test_rwkv_by_its_own_names(as_file: bool, tmp_path: Path) -> None:
    made = RwkvConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=8, intermediate_size=40, rescale_every=0
    )
    truth = RwkvForCausalLM(made).eval()
    for parameter in truth.parameters():
        nn.init.normal_(parameter, std=0.3)
    state = {name: t.clone() for name, t in truth.state_dict().items()}
    with torch.no_grad():
        expected = truth(IDS).logits
    folder = tmp_path / "old"
    folder.mkdir()
    file = folder / "RWKV-4-tiny-ctx256.pth"
    torch.save(rwkv_original(state), file)
    with pytest.raises(UserError, match=r"ctx256\.pth.*allow_pickle: true"):
        espalier.load_model(str(folder))
    convert_folder(file if as_file else folder, tmp_path / "plain", allow_pickle=True)
    model, _ = espalier.load_model(str(tmp_path / "plain"), device="cpu")
    assert model.config.context_length == 256
    with torch.no_grad():
        assert (model(IDS).logits - expected).abs().max() < TOLERANCE
    prompts = [IDS[0].tolist(), [4, 8, 15]]
    found = sample(model, probe(model), prompts, Sampling(5, temperature=0), copies=2)
    for prompt, answers in zip(prompts, found, strict=True):
        row = list(prompt)
        for _ in range(5):
            with torch.no_grad():
                row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
        assert [a.tokens for a in answers] == [row[-5:]] * 2
    for name, tensor in model.state_dict().items():  # not rescaled, whatever has run
        assert torch.equal(tensor, state[name]), name
