"""Our own architectures with other shapes and options than the golden ones, against plain computations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import espalier
from espalier.errors import UserError
from espalier.models.forward import Traits, TreeModel, Want
from espalier.models.probe import probe
from espalier.trees.batch import lay_out_padded, lay_out_tree
from espalier.trees.tree import Tree
from tests.models.legacy.plain import IDS, TOLERANCE, State, attention, check, rand, rms, write


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return F.linear(x, state[name + ".weight"], state.get(name + ".bias"))


def norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"], eps)


def add_linear(state: State, name: str, rows: int, columns: int, std: float = 0.15) -> None:
    state[name + ".weight"], state[name + ".bias"] = rand(rows, columns, std=std), rand(rows)


def add_norm(state: State, name: str, size: int) -> None:
    state[name + ".weight"], state[name + ".bias"] = 1 + rand(size), rand(size)


def by_head(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], heads, -1).transpose(0, 1)


# --- PanGu ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"intermediate_size": 72, "activation_function": "gelu_new", "scale_attn_weights": False},
        {"layer_norm_epsilon": 1e-3, "num_heads": 8, "tie_word_embeddings": False},
        {"num_layers": 1, "model_type": "pangu"},
        {"num_layers": 4, "num_heads": 8, "intermediate_size": 72, "activation_function": "gelu_new"}
        | {"layer_norm_epsilon": 1e-6, "scale_attn_weights": False, "tie_word_embeddings": False},
    ],
)
def test_pangu(options: dict[str, Any], tmp_path: Path) -> None:
    c = {"model_type": "gpt_pangu", "vocab_size": 64, "hidden_size": 40, "num_layers": 3, "num_heads": 4}
    c |= {"intermediate_size": None, "max_position_embeddings": 32, "activation_function": "gelu"}
    c |= {"layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "pad_token_id": 6, **options}
    size, inner, heads, eps = 40, c["intermediate_size"] or 160, c["num_heads"], c["layer_norm_epsilon"]
    t = "transformer."
    state = {t + "wte.weight": rand(64, size, std=0.3)}
    state |= {t + "wpe.weight": rand(32, size), t + "wqe.weight": rand(32, size, std=0.5)}
    add_norm(state, t + "ln_f", size)
    for i in range(c["num_layers"]):
        for part in ("q_proj", "k_proj", "v_proj", "c_proj"):
            add_linear(state, f"{t}h.{i}.attn.{part}", size, size)
        add_linear(state, f"{t}h.{i}.mlp.c_fc", inner, size)
        add_linear(state, f"{t}h.{i}.mlp.c_proj", size, inner)
        add_norm(state, f"{t}h.{i}.ln_1", size)
        add_norm(state, f"{t}h.{i}.ln_2", size)
        state[f"{t}h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8).tril()
        state[f"{t}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    tied = c.get("tie_word_embeddings", True)
    state["lm_head.weight"] = state[t + "wte.weight"] if tied else rand(64, size)
    length = IDS.shape[1]
    x = state[t + "wte.weight"][IDS[0]] + state[t + "wpe.weight"][:length]
    act = F.gelu if c["activation_function"] == "gelu" else lambda y: F.gelu(y, approximate="tanh")
    for i in range(c["num_layers"]):
        at = f"{t}h.{i}."
        last = i == c["num_layers"] - 1
        if last:
            x = norm(x, state, t + "ln_f", eps)
        normed = norm(x, state, at + "ln_1", eps)
        asking = state[t + "wqe.weight"][:length] if last else normed
        q, k, v = (
            by_head(linear(y, state, f"{at}attn.{p}_proj"), heads)
            for y, p in ((asking, "q"), (normed, "k"), (normed, "v"))
        )
        if not c["scale_attn_weights"]:
            q = q * math.sqrt(q.shape[-1])
        found = attention(q, k, v).transpose(0, 1).reshape(length, size)
        x = x + linear(found, state, at + "attn.c_proj")
        inside = act(linear(norm(x, state, at + "ln_2", eps), state, at + "mlp.c_fc"))
        x = x + linear(inside, state, at + "mlp.c_proj")
    model = check(write(tmp_path / "old", c, state), tmp_path, (x @ state["lm_head.weight"].T)[None])
    assert probe(model).method == "pieces"


# --- GLM and ChatGLM: prompts that are read both ways ------------------------------------------------


def prefix_attention(q: Tensor, k: Tensor, v: Tensor, prompt: int) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    hidden[:, :prompt] = False
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def glm_state(c: dict[str, Any], prefix: str) -> State:
    size, rows = c["hidden_size"], c["max_sequence_length"]
    state = {"word_embeddings.weight": rand(c["vocab_size"], size, std=0.3)}
    t = "transformer."
    if c["block_position_encoding"]:
        state[t + "position_embeddings.weight"] = rand(rows + 1, size, std=0.3)
        state[t + "block_position_embeddings.weight"] = rand(rows + 1, size, std=0.3)
    else:
        state[t + "position_embeddings.weight"] = rand(rows, size, std=0.3)
    add_norm(state, t + "final_layernorm", size)
    for i in range(c["num_layers"]):
        at = f"{t}layers.{i}."
        add_linear(state, at + "attention.query_key_value", 3 * size, size, std=0.3)
        add_linear(state, at + "attention.dense", size, size)
        add_linear(state, at + "mlp.dense_h_to_4h", 4 * size, size)
        add_linear(state, at + "mlp.dense_4h_to_h", size, 4 * size)
        add_norm(state, at + "input_layernorm", size)
        add_norm(state, at + "post_attention_layernorm", size)
    return {prefix + name: tensor for name, tensor in state.items()}


def glm_logits(c: dict[str, Any], state: State, ids: Tensor, two: Tensor, prompt: int) -> Tensor:
    state = {name.removeprefix("glm."): tensor for name, tensor in state.items()}
    t, heads = "transformer.", c["num_attention_heads"]
    x = state["word_embeddings.weight"][ids] + state[t + "position_embeddings.weight"][two[0]]
    if c["block_position_encoding"]:
        x = x + state[t + "block_position_embeddings.weight"][two[1]]
    for i in range(c["num_layers"]):
        at = f"{t}layers.{i}."
        normed = norm(x, state, at + "input_layernorm", 1e-5)
        mixed = linear(normed, state, at + "attention.query_key_value").chunk(3, -1)
        found = prefix_attention(*(by_head(y, heads) for y in mixed), prompt)
        x = x + linear(found.transpose(0, 1).reshape(x.shape), state, at + "attention.dense")
        normed = norm(x, state, at + "post_attention_layernorm", 1e-5)
        x = x + linear(
            F.gelu(linear(normed, state, at + "mlp.dense_h_to_4h")), state, at + "mlp.dense_4h_to_h"
        )
    return norm(x, state, t + "final_layernorm", 1e-5) @ state["word_embeddings.weight"].T


GLM = {"model_type": "glm", "vocab_size": 64, "hidden_size": 40, "num_layers": 2, "num_attention_heads": 8}
GLM |= {
    "max_sequence_length": 32,
    "block_position_encoding": True,
    "pad_token_id": 50,
    "attention_scale": 8.0,
}
GLM |= {"sop_token_id": 56, "eop_token_id": 57}


@pytest.mark.parametrize(("prefix", "two"), [("", True), ("glm.", True), ("", False)])
def test_glm(prefix: str, two: bool, tmp_path: Path) -> None:
    c = {**GLM, "block_position_encoding": two, "architectures": ["GLMForConditionalGeneration"]}
    state = glm_state(c, prefix)
    length = IDS.shape[1]
    positions = torch.stack([torch.arange(length), torch.zeros(length, dtype=torch.int64)])
    expected = glm_logits(c, state, IDS[0], positions, 0)[None]
    model = check(write(tmp_path / "old", c, state), tmp_path, expected)
    assert probe(model).method == "padded"


def test_a_glm_reads_its_prompt_off_the_ids(tmp_path: Path) -> None:
    state = glm_state(GLM, "")
    model: Any = espalier.load_model(str(write(tmp_path, GLM, state)), device="cpu")[0]
    model.config.blank_token_ids = [53, 58, 59]
    prompt, answer = [11, 12, 59, 13], [56, 20, 21, 22]
    ids = torch.tensor([*prompt, *answer])
    positions = torch.tensor([[0, 1, 2, 3, 2, 2, 2, 2], [0, 0, 0, 0, 1, 2, 3, 4]])
    expected = glm_logits(GLM, state, ids, positions, 4)
    rows = torch.tensor([[50, 50, *prompt, *answer], [*prompt, *answer, 50, 50], [1, 2, *prompt, *answer]])
    mask = torch.tensor([[0] * 2 + [1] * 8, [1] * 8 + [0] * 2, [0] * 2 + [1] * 8])
    with torch.no_grad():
        plain = model(input_ids=ids[None]).logits[0]
        padded = model(input_ids=rows, attention_mask=mask, position_ids=torch.zeros(3, 10).long()).logits
    for found in (plain, padded[0, 2:], padded[1, :8], padded[2, 2:]):
        assert (found - expected).abs().max() < TOLERANCE
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 50}
    alone = model.generate(ids[None, :5], attention_mask=torch.ones(1, 5).long(), **settings)[0, 5:]
    beside = model.generate(rows[:1, :7], attention_mask=mask[:1, :7], **settings)[0, 7:]
    again = model.generate(
        ids[None, :5].repeat(2, 1), attention_mask=torch.ones(2, 5).long(), use_cache=False, **settings
    )
    beams = model.generate(ids[None, :5], attention_mask=torch.ones(1, 5).long(), num_beams=3, **settings)
    assert torch.equal(alone, beside)
    assert torch.equal(alone, again[1, 5:])
    assert beams.shape == (1, 11)


def chatglm_state(c: dict[str, Any]) -> State:
    size, inner, t = c["hidden_size"], c["inner_hidden_size"], "transformer."
    state = {t + "word_embeddings.weight": rand(c["vocab_size"], size)}
    state["lm_head.weight"] = rand(c["vocab_size"], size)
    if c.get("tie_word_embeddings", True):
        state["lm_head.weight"] = state[t + "word_embeddings.weight"]
    add_norm(state, t + "final_layernorm", size)
    for i in range(c["num_layers"]):
        at = f"{t}layers.{i}."
        add_linear(state, at + "attention.query_key_value", 3 * size, size, std=0.25)
        add_linear(state, at + "attention.dense", size, size, std=0.4)
        add_linear(state, at + "mlp.dense_h_to_4h", inner, size, std=0.4)
        add_linear(state, at + "mlp.dense_4h_to_h", size, inner, std=0.4)
        add_norm(state, at + "input_layernorm", size)
        add_norm(state, at + "post_attention_layernorm", size)
        state[at + "attention.rotary_emb.inv_freq"] = torch.ones(2)
    return state


def chatglm_logits(c: dict[str, Any], state: State, ids: Tensor, two: Tensor, prompt: int) -> Tensor:
    t, heads, eps = "transformer.", c["num_attention_heads"], c["layernorm_epsilon"]
    size = c["hidden_size"] // heads // 2
    inv = (1.0 / 10000 ** (torch.arange(0, size, 2).float() / size)).half().float()
    alpha = math.sqrt(56)
    x = state[t + "word_embeddings.weight"][ids]

    def rotate(y: Tensor) -> Tensor:
        out = []
        for half, places in zip(y.chunk(2, -1), two, strict=True):
            angle = torch.cat([places[:, None] * inv] * 2, -1)
            a, b = half.chunk(2, -1)
            out.append(half * angle.cos() + torch.cat([-b, a], -1) * angle.sin())
        return torch.cat(out, -1)

    for i in range(c["num_layers"]):
        at = f"{t}layers.{i}."
        normed = norm(x, state, at + "input_layernorm", eps)
        mixed = by_head(linear(normed, state, at + "attention.query_key_value"), heads).chunk(3, -1)
        found = prefix_attention(rotate(mixed[0]), rotate(mixed[1]), mixed[2], prompt)
        h = normed * alpha + linear(found.transpose(0, 1).reshape(x.shape), state, at + "attention.dense")
        normed = norm(h, state, at + "post_attention_layernorm", eps)
        inside = F.gelu(linear(normed, state, at + "mlp.dense_h_to_4h"), approximate="tanh")
        x = normed * alpha + linear(inside, state, at + "mlp.dense_4h_to_h")
    return norm(x, state, t + "final_layernorm", eps) @ state["lm_head.weight"].T


@pytest.mark.parametrize("tied", [False, True])
def test_chatglm(tied: bool, tmp_path: Path) -> None:
    c = {"model_type": "chatglm", "vocab_size": 64, "hidden_size": 48, "inner_hidden_size": 40}
    c |= {"num_layers": 4, "num_attention_heads": 6, "layernorm_epsilon": 1e-6, "max_sequence_length": 64}
    c |= {"position_encoding_2d": True, "bos_token_id": 54, "eos_token_id": 55, "pad_token_id": 3}
    c |= {"mask_token_id": 50, "gmask_token_id": 51}
    if not tied:
        c["tie_word_embeddings"] = False
    state = chatglm_state(c)
    ids = torch.tensor([10, 50, 11, 51, 54, 20, 21, 22, 55])  # [gMASK] counts before [MASK]
    two = torch.tensor([[0, 1, 2, 3, 3, 3, 3, 3, 3], [0, 0, 0, 0, 1, 2, 3, 4, 5]])
    expected = chatglm_logits(c, state, ids, two, 4)[None]
    model = check(write(tmp_path / "old", c, state), tmp_path, expected, ids[None])
    rows = torch.tensor([[3, 3, *ids.tolist()], [*ids.tolist(), 3, 3]])
    mask = torch.tensor([[0, 0, *[1] * 9], [*[1] * 9, 0, 0]])
    with torch.no_grad():
        found = model(input_ids=rows, attention_mask=mask).logits
    assert (found[0, 2:] - expected[0]).abs().max() < TOLERANCE
    assert (found[1, :9] - expected[0]).abs().max() < TOLERANCE
    assert probe(model).method == "padded"


# --- Qwen beyond its length ----------------------------------------------------------------------------


def qwen_state(c: dict[str, Any]) -> State:
    hidden, inner = c["hidden_size"], c["intermediate_size"] // 2
    wide = c["num_attention_heads"] * c["kv_channels"]
    state = {"transformer.wte.weight": rand(64, hidden, std=0.5), "lm_head.weight": rand(64, hidden)}
    state["transformer.ln_f.weight"] = 1 + rand(hidden)
    for i in range(c["num_hidden_layers"]):
        at = f"transformer.h.{i}."
        state |= {at + "ln_1.weight": 1 + rand(hidden), at + "ln_2.weight": 1 + rand(hidden)}
        add_linear(state, at + "attn.c_attn", 3 * wide, hidden, std=0.3)
        state[at + "attn.c_proj.weight"] = rand(hidden, wide)
        state |= {at + f"mlp.w{n}.weight": rand(inner, hidden) for n in (1, 2)}
        state[at + "mlp.c_proj.weight"] = rand(hidden, inner)
    return state


def qwen_logits(c: dict[str, Any], state: State, ids: Tensor, prompt: int) -> Tensor:
    heads, size, length = c["num_attention_heads"], c["kv_channels"], len(ids)
    base = float(c["rotary_emb_base"])
    if c["use_dynamic_ntk"]:
        alpha = max(2 ** math.ceil(math.log2(prompt / c["seq_length"]) + 1) - 1, 1)
        base *= alpha ** (size / (size - 2))
    angle = torch.arange(length)[:, None] / base ** (torch.arange(0, size, 2) / size)
    angle = torch.cat([angle, angle], -1)
    factor = torch.ones(length)
    if c["use_logn_attn"]:
        factor = torch.tensor([max(1.0, math.log(p + 1, c["seq_length"])) for p in range(length)])

    def rotate(y: Tensor) -> Tensor:
        a, b = y.chunk(2, -1)
        return y * angle.cos() + torch.cat([-b, a], -1) * angle.sin()

    x = state["transformer.wte.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        at = f"transformer.h.{i}."
        normed = rms(x, state[at + "ln_1.weight"], c["layer_norm_epsilon"])
        q, k, v = (by_head(y, heads) for y in linear(normed, state, at + "attn.c_attn").chunk(3, -1))
        found = attention(rotate(q) * factor[:, None], rotate(k), v).transpose(0, 1).reshape(length, -1)
        x = x + linear(found, state, at + "attn.c_proj")
        normed = rms(x, state[at + "ln_2.weight"], c["layer_norm_epsilon"])
        inside = linear(normed, state, at + "mlp.w1") * F.silu(linear(normed, state, at + "mlp.w2"))
        x = x + linear(inside, state, at + "mlp.c_proj")
    return rms(x, state["transformer.ln_f.weight"], c["layer_norm_epsilon"]) @ state["lm_head.weight"].T


@pytest.mark.parametrize("ntk", [False, True])
@pytest.mark.parametrize("logn", [False, True])
def test_qwen(ntk: bool, logn: bool, tmp_path: Path) -> None:
    c = {"model_type": "qwen", "vocab_size": 64, "hidden_size": 36, "num_hidden_layers": 2, "kv_channels": 8}
    c |= {"num_attention_heads": 3, "intermediate_size": 40, "layer_norm_epsilon": 1e-5, "seq_length": 5}
    c |= {"rotary_emb_base": 50000, "no_bias": True, "use_dynamic_ntk": ntk, "use_logn_attn": logn}
    c |= {"max_position_embeddings": 64, "tie_word_embeddings": False}
    state = qwen_state(c)
    length = IDS.shape[1]  # beyond twice the trained length
    expected = qwen_logits(c, state, IDS[0], length)[None]
    model = check(write(tmp_path / "old", c, state), tmp_path, expected)
    assert model.config.model_type == ("espalier_qwen" if ntk or logn else "qwen2")
    # what was rotated for the prompt stays while it is answered
    with torch.no_grad():
        cache = model(input_ids=IDS[:, :4], use_cache=True).past_key_values
        found = model(input_ids=IDS[:, 4:], past_key_values=cache, use_cache=True).logits
    assert (found - qwen_logits(c, state, IDS[0], 4)[None, 4:]).abs().max() < TOLERANCE
    model.train()
    trained = qwen_logits({**c, "use_dynamic_ntk": False, "use_logn_attn": False}, state, IDS[0], length)
    assert (model(input_ids=IDS).logits[0] - trained).abs().max() < TOLERANCE


def test_qwen_s_trees_beyond_its_length(tmp_path: Path) -> None:
    c = {"model_type": "qwen", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "kv_channels": 8}
    c |= {"num_attention_heads": 4, "intermediate_size": 40, "layer_norm_epsilon": 1e-5, "seq_length": 20}
    c |= {
        "rotary_emb_base": 10000,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "tie_word_embeddings": False,
    }
    lm: Any = espalier.load_model(str(write(tmp_path, c, qwen_state(c))), device="cpu")[0]
    traits = probe(lm)
    assert traits.method == "pieces"
    model = TreeModel(lm, traits)

    def tree(trunk: int, *branches: int) -> Tree:
        tokens = torch.randint(3, 64, (trunk,)).tolist()
        ends = [torch.randint(3, 64, (n,)).tolist() for n in branches]
        return Tree.join([(tokens + end, [False] * trunk + [True] * len(end)) for end in ends])

    trees = [tree(30, 5, 9, 2), tree(4, 3), tree(12, 60, 61)]  # each tree has a base of its own
    with torch.no_grad():
        found = model(lay_out_tree(trees), Want()).logprobs
        lm.set_attn_implementation("sdpa")
        padded = TreeModel(lm, Traits("padded", True, {"": None}, ""))(lay_out_padded(trees), Want()).logprobs
    assert found is not None
    assert padded is not None
    assert (found - padded).abs().max() < TOLERANCE
    lm.set_attn_implementation("espalier")
    with pytest.raises(UserError, match="cutoff_len: 20"), torch.no_grad():
        model(lay_out_tree([tree(10, 5, 40)]), Want())
