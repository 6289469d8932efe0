"""Scaled positions against closed forms, against transformers alone with one text, and through folders."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.bloom import modeling_bloom
from transformers.models.codegen.modeling_codegen import CodeGenAttention
from transformers.models.mpt import modeling_mpt

from espalier.errors import UserError
from espalier.models.adapters.kinds import add_lora, add_prompt, check_virtual
from espalier.models.forward import TreeModel, Want
from espalier.models.legacy import baichuan
from espalier.models.load import context_length, load_lm, new_lm
from espalier.models.load_adapted import load_with_adapter, with_adapters
from espalier.models.positions.rope import ServingDiffers, original_length, scaling_of, set_scaling
from espalier.models.positions.rope_modules import changes_with_length, slope_factors, text_lengths
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample
from espalier.models.saved import save_model
from espalier.trees import Tree, lay_out_padded, lay_out_tree
from tests.models.conftest import CONFIGS, VOCABULARY, random_tokens

Tiny = Callable[..., nn.Module]
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROTARY = ["llama", "qwen2", "qwen3", "glm", "falcon", "mistral", "cohere", "gemma2", "gpt_neox"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SHORT: dict[str, dict[str, Any]] = {
    name: {**CONFIGS.get(name, {}), "max_position_embeddings": 16} for name in ROTARY
}
SHORT["gpt_neox"] = {"model_type": "gpt_neox", **SIZES, "intermediate_size": 64, "max_position_embeddings": 16,
                     "rotary_pct": 0.5}  # fmt: skip
SHORT["bloom"] = {**CONFIGS["bloom"], "seq_length": 16}
SHORT["mpt"] = {**CONFIGS["mpt"], "max_seq_len": 64}
SHORT["codegen"] = {**CONFIGS["codegen"], "n_positions": 48, "n_ctx": 48}


def make(name: str, scaling: Any = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    lm = new_lm({**SHORT[name], **settings}, VOCABULARY, IDS, rope_scaling=scaling)
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.18)
    return lm.eval()


def logits(lm: nn.Module, n: int = 40, **given: Tensor) -> Tensor:
    with torch.no_grad():
        return lm(input_ids=torch.tensor([random_tokens(n, 3)]), **given).logits


def frequencies(kind: str, dim: int, theta: float, factor: float, original: int) -> tuple[Tensor, float]:
    """The closed forms, each number by itself."""
    found, scale = [], 1.0
    for i in range(0, dim, 2):
        f = theta ** (-i / dim)
        if kind == "linear":
            f = f / factor
        if kind == "llama3":
            turns = original * f / (2 * math.pi)  # of this pair over the original length
            mix = min(1.0, max(0.0, (turns - 1) / (4 - 1)))
            f = (1 - mix) * f / factor + mix * f
        if kind == "yarn":

            def place(rotations: float) -> float:
                return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

            low, high = max(math.floor(place(32)), 0), min(math.ceil(place(1)), dim - 1)
            ramp = min(1.0, max(0.0, (i / 2 - low) / max(high - low, 1e-3)))
            f = f / factor * ramp + f * (1 - ramp)
            scale = 0.1 * math.log(factor) + 1
        found.append(f)
    return torch.tensor(found), scale


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
@pytest.mark.parametrize("name", ROTARY)
def test_the_logits_are_those_of_the_closed_form(name: str, kind: str) -> None:
    plain = make(name)
    scaled = make(name, {"rope_type": kind, "factor": 4.0})
    before = logits(plain)
    theta = plain.config.rope_parameters["rope_theta"]
    for module in plain.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            dim = 2 * len(module.inv_freq)
            module.inv_freq, module.attention_scaling = frequencies(kind, dim, theta, 4.0, 16)
    truth = logits(plain, attention_mask=torch.ones(1, 40))
    assert (truth - before).abs().max() > 1e-2
    torch.testing.assert_close(logits(scaled), truth, rtol=1e-4, atol=1e-4)
    assert context_length(scaled) == 64
    assert original_length(scaled.config) == 16
    trees = forest()
    traits = probe(scaled)
    assert traits.method != "padded", traits.reason
    with torch.no_grad():
        padded = TreeModel(scaled, probe(scaled, wanted="padded"))(lay_out_padded(trees), Want()).logprobs
        found = TreeModel(scaled, probe(scaled))(lay_out_tree(trees), Want()).logprobs
    torch.testing.assert_close(found, padded, rtol=1e-4, atol=1e-4)


def forest(lengths: tuple[int, ...] = (30, 30, 8, 20)) -> list[Tree]:
    """A tree of two branches of one length, and lone texts of others."""
    trunk = random_tokens(lengths[0] - 6, 1)
    paths = [(trunk + random_tokens(6, 10 + i), [False] * len(trunk) + [True] * 6) for i in range(2)]
    lone = [
        Tree.from_path(random_tokens(n, 20 + i), [False] + [True] * (n - 1))
        for i, n in enumerate(lengths[2:])
    ]
    return [Tree.join(paths), *lone]


@pytest.mark.parametrize("name", ["llama", "qwen3", "glm", "gpt_neox"])
def test_dynamic_ntk_is_that_of_each_text_alone(name: str, tmp_path: Path) -> None:
    lm = make(name, {"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=24)
    assert changes_with_length(lm) and context_length(lm) == 96
    lm.save_pretrained(str(tmp_path))
    trees = forest()
    found = []
    for layout, wanted in ((lay_out_padded, "padded"), (lay_out_tree, "tree")):
        with torch.no_grad():
            found.append(TreeModel(lm, probe(lm, wanted=wanted))(layout(trees), Want()).logprobs)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    row = 0
    for tree in trees:
        for tokens, trained in tree.paths():
            alone = AutoModelForCausalLM.from_pretrained(str(tmp_path)).eval()  # nothing cached from another
            assert not changes_with_length(alone)
            with torch.no_grad():
                said = alone(input_ids=torch.tensor(tokens)[None]).logits[0].log_softmax(-1)
            truth = [float(said[i - 1, tokens[i]]) for i in range(len(tokens)) if trained[i]]
            torch.testing.assert_close(found[0][row, : len(truth)], torch.tensor(truth), rtol=1e-4, atol=1e-4)
            row += 1
    assert changes_with_length(load_lm(str(tmp_path)))


def test_a_sampled_text_keeps_the_base_of_its_prompt() -> None:
    lm = make("llama", {"rope_type": "dynamic", "factor": 4.0})
    prompts = [random_tokens(30, 1), random_tokens(14, 2), random_tokens(20, 3)]
    found = sample(lm, probe(lm), prompts, Sampling(6, 0.0), copies=1)
    for prompt, (answer,) in zip(prompts, found, strict=True):
        plain = make("llama")
        n = max(16, len(prompt))
        base = 10000.0 * (4 * n / 16 - 3) ** (8 / 6)
        plain.model.rotary_emb.inv_freq = base ** (-torch.arange(0, 8, 2) / 8)
        text = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                text.append(int(plain(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
        assert answer.tokens == text[len(prompt) :]


def test_texts_are_told_apart_by_their_positions() -> None:
    rows = torch.tensor([[0, 1, 2, 1, 2, 3, 0, 1], [0, 0, 0, 1, 2, 3, 4, 5]])
    assert text_lengths(rows).tolist() == [[4] * 6 + [2] * 2, [1, 1, *[6] * 6]]
    assert text_lengths(torch.tensor([[7, 8, 9, 8]])).tolist() == [[10] * 4]


@pytest.mark.parametrize("heads", [4, 8, 6, 12])
def test_ntk_alibi_leaves_near_words_and_moves_far_ones(heads: int) -> None:
    slopes = baichuan.slopes(heads)
    factors = slope_factors(slopes, "ntk_alibi", 4.0)
    assert factors[slopes.argmax()] == pytest.approx(1) and factors[slopes.argmin()] == pytest.approx(0.25)
    if heads in (4, 8):  # the known recipe: a smaller base, and all slopes raised again
        scale = 4.0 ** (1 / (heads - 1))
        base = 2 ** (-8 / heads) / scale
        truth = torch.tensor([base ** (k + 1) * scale for k in range(heads)])
        torch.testing.assert_close(slopes * factors, truth)
    assert slope_factors(slopes, "linear", 4.0).tolist() == [0.25] * heads


@pytest.mark.parametrize("kind", ["linear", "ntk_alibi"])
@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_scaled_slopes_reach_the_logits(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = make(name, {"rope_type": kind, "factor": 4.0})
    plain = make(name)
    before, found = logits(plain), logits(scaled)
    share = torch.arange(4) / 3
    factors = torch.full((4,), 0.25) if kind == "linear" else 4.0**-share
    if name == "bloom":
        biases = modeling_bloom.build_alibi_tensor
        monkeypatch.setattr(
            modeling_bloom, "build_alibi_tensor", lambda *a: biases(*a) * factors[:, None, None]
        )
    else:
        built = modeling_mpt.build_mpt_alibi_tensor
        monkeypatch.setattr(
            modeling_mpt, "build_mpt_alibi_tensor", lambda *a, **k: built(*a, **k) * factors[:, None, None]
        )
    truth = logits(plain, attention_mask=torch.ones(1, 40))
    assert (truth - before).abs().max() > 1e-3
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
    monkeypatch.undo()
    # padded rows, and what is sampled, as the whole text alone
    traits, trees = probe(scaled), forest()
    with torch.no_grad():
        rows = TreeModel(scaled, traits)(lay_out_padded(trees), Want()).logprobs
        (tokens, _), *_ = trees[1].paths()
        alone = scaled(input_ids=torch.tensor(tokens)[None]).logits[0].log_softmax(-1)
    truth = torch.tensor([float(alone[i - 1, tokens[i]]) for i in range(1, len(tokens))])
    torch.testing.assert_close(rows[2, : len(truth)], truth, rtol=1e-4, atol=1e-4)
    ((answer,),) = sample(scaled, traits, [tokens.tolist()], Sampling(4, 0.0))
    text = tokens.tolist()
    for token in answer.tokens:
        with torch.no_grad():
            assert int(scaled(input_ids=torch.tensor([text])).logits[0, -1].argmax()) == token
        text.append(token)


def test_baichuans_slopes_are_scaled_in_the_tree_layout_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(scaling: Any) -> Any:
        torch.manual_seed(0)
        config = baichuan.BaichuanConfig(
            **{**SIZES, "intermediate_size": 64, "vocab_size": VOCABULARY, "max_position_embeddings": 16}
        )
        if scaling:
            set_scaling(config, scaling)
        lm = baichuan.BaichuanForCausalLM(config)
        for parameter in lm.parameters():
            nn.init.normal_(parameter, std=0.18) if parameter.dim() > 1 else None
        return lm.eval()

    scaled, plain = build({"rope_type": "ntk_alibi", "factor": 4}), build(None)
    before, found = logits(plain), logits(scaled)
    assert context_length(scaled) == 64 and probe(scaled).method == "pieces"
    monkeypatch.setattr(
        baichuan,
        "slopes",
        lambda heads: torch.tensor([2.0 ** (-2 * (k + 1)) * 4.0 ** (-k / 3) for k in range(4)]),
    )
    truth = logits(plain, attention_mask=torch.ones(1, 40))
    assert (truth - before).abs().max() > 1e-3
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_tables_of_sines_are_made_anew(kind: str, tmp_path: Path) -> None:
    settings = {"rope_type": kind, "factor": 2.0}
    scaled, plain = make("codegen", settings), make("codegen")
    assert scaled.transformer.h[0].attn.embed_positions.shape == (96, 4)
    freqs, scale = frequencies(kind, 4, 10000.0, 2.0, 48)
    angles = torch.arange(48)[:, None] * freqs
    before = logits(plain)
    for module in plain.modules():
        if isinstance(module, CodeGenAttention):
            module.embed_positions = torch.cat([angles.sin(), angles.cos()], 1) * scale
    torch.testing.assert_close(logits(scaled), logits(plain), rtol=1e-4, atol=1e-4)
    assert (logits(scaled) - before).abs().max() > 1e-3
    scaled.save_pretrained(str(tmp_path))
    torch.testing.assert_close(logits(load_lm(str(tmp_path)).eval()), logits(scaled))
    with pytest.raises(UserError, match="dynamic is not for codegen"):
        make("codegen", {"rope_type": "dynamic", "factor": 2})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        ("llama", {"rope_type": "linear", "factor": 2.0}),
        ("llama", {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0}),
        ("llama", {"rope_type": "dynamic", "factor": 2.0}),
        ("bloom", {"rope_type": "ntk_alibi", "factor": 2.0}),
    ],
)
def test_the_setting_is_saved_with_the_model_and_with_an_adapter(
    name: str, scaling: dict[str, Any], tmp_path: Path
) -> None:
    base, scaled, adapter = str(tmp_path / "base"), str(tmp_path / "scaled"), tmp_path / "adapter"
    make(name).save_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ServingDiffers)
        lm = load_lm(base, rope_scaling=scaling).eval()
        truth = logits(lm)
        assert (truth - logits(load_lm(base).eval())).abs().max() > 1e-3
        lm.save_pretrained(scaled)
        again = load_lm(scaled).eval()
        torch.testing.assert_close(logits(again), truth)
        assert scaling_of(again.config).items() >= scaling.items()  # type: ignore[union-attr]
        load_lm(scaled, rope_scaling=scaling)  # the same, said again
        adapted = add_lora(lm, rank=2, alpha=None, dropout=0.0, target=None, bias="none")
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.3)
        adapter.mkdir()
        save_model(adapter, TreeModel(adapted, probe(adapted)), None)
        told = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
        assert told["base_model_name_or_path"] == base
        torch.testing.assert_close(
            logits(load_with_adapter(str(adapter)).eval()), logits(adapted.eval()), rtol=1e-3, atol=1e-3
        )
    other = {**scaling, "factor": 3.0}
    with pytest.warns(ServingDiffers, match=r"saved with the scaling .*2\.0.*now loaded with .*3\.0"):
        load_lm(scaled, rope_scaling=other)
    with pytest.warns(ServingDiffers, match="was trained with the scaling .* under it has None"):
        with_adapters(load_lm(base), [str(adapter)])
    with pytest.warns(ServingDiffers, match="was trained with the scaling"):
        load_with_adapter(str(adapter), rope_scaling=other)


def test_a_layer_type_at_a_time(tiny: Tiny) -> None:
    settings = {
        **SIZES, "num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8, "max_position_embeddings": 16,
        "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    lm = new_lm(
        {"model_type": "gemma3_text", **settings},
        VOCABULARY,
        IDS,
        rope_scaling={"rope_type": "yarn", "factor": 4},
    )
    parameters: Any = lm.config.rope_parameters
    assert parameters["full_attention"]["rope_type"] == "yarn"
    assert parameters["sliding_attention"]["rope_type"] == "default"
    rotary: Any = next(m for m in lm.modules() if type(m).__name__ == "Gemma3RotaryEmbedding")
    theta = parameters["full_attention"]["rope_theta"]
    torch.testing.assert_close(rotary.full_attention_inv_freq, frequencies("yarn", 8, theta, 4.0, 16)[0])
    assert context_length(lm) == 64


@pytest.mark.parametrize(
    ("name", "scaling", "said"),
    [
        ("gpt2", "linear", "gpt2 has learned positions"),
        ("llama", "linear", "linear has no factor, and nothing says how long"),
        ("llama", {"rope_type": "linear", "factor": 0.5}, "factor 0.5; wanted a number of at least 1"),
        ("llama", {"rope_type": "linear", "factor": 2, "beta_fast": 3}, "beta_fast is no setting of linear"),
        (
            "llama",
            {"rope_type": "ntk_alibi", "factor": 2},
            "ntk_alibi is not for llama, which knows .* rotary",
        ),
        (
            "bloom",
            {"rope_type": "yarn", "factor": 2},
            "yarn is not for bloom, which knows distances by ALiBi",
        ),
        ("llama", {"rope_type": "longrope", "factor": 2}, "longrope's factors are found by a search"),
        ("llama", {"factor": 2}, "None is not known"),
        ("falcon-alibi", {"rope_type": "linear", "factor": 2}, "where nothing can reach them"),
    ],
)
def test_what_cannot_be_scaled_is_said(tiny: Tiny, name: str, scaling: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        new_lm(CONFIGS[name], VOCABULARY, IDS, rope_scaling=scaling)


def test_a_name_alone_reaches_the_length_that_is_wanted() -> None:
    lm = new_lm(SHORT["llama"], VOCABULARY, IDS, rope_scaling="linear", length=50)
    assert lm.config.rope_parameters["factor"] == 4.0 and context_length(lm) == 64
    with pytest.raises(UserError, match="cutoff_len 10 fits into 16 positions"):
        new_lm(SHORT["llama"], VOCABULARY, IDS, rope_scaling="linear", length=10)


def test_virtual_tokens_do_not_go_with_positions_that_change() -> None:
    lm = make("llama", {"rope_type": "dynamic", "factor": 2})
    with pytest.raises(UserError, match=r"dynamic NTK.*rope_scaling: yarn"):
        check_virtual(lm, "prompt")
    lm = make("llama", {"rope_type": "yarn", "factor": 2})
    check_virtual(lm, "prompt")
    assert context_length(add_prompt(lm, tokens=3, text=None)) == 29
