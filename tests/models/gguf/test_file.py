"""GGUF files against two readers: gguf's own for what is in them, transformers' for what they say."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer

from espalier.errors import UserError
from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.gguf.file import _llama3_factors, write_gguf
from espalier.models.gguf.vocabulary import vocabulary_of
from espalier.models.probe import probe
from espalier.models.quantise.methods import Quantisation
from espalier.models.saved import save_model
from tests.conftest import Vocabulary
from tests.golden.shortened import shortened
from tests.test_cli import call

gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra `gguf`)")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES},
    "llama tied, whole heads": {"model_type": "llama", **SIZES, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **SIZES, "sliding_window": None, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", **SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    # transformers' reader takes this width for granted
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 128, "tie_word_embeddings": True},
}  # fmt: skip
LINES = [
    "the quick brown fox",
    "  two spaces,\n\nand 1234 lines!",
    "你好，世界。Größe 😀",
    "it's we'll I'D",
    " x",
    "a<|im_end|>b",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load.train_tokenizer([*LINES, "lines of the fox and the world"] * 3, 300)


def made(name: str, tokenizer: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    lm: Any = load.new_lm(CONFIGS[name], len(tokenizer), ids)
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 * (parameter.dim() == 1), std=0.1)
    return lm.eval()


def said(lm: Any) -> torch.Tensor:
    with torch.no_grad():
        return lm(input_ids=torch.arange(40)[None] * 7 % 290).logits


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_transformers_reads_the_same_model(name: str, kind: str, tokenizer: Any, tmp_path: Path) -> None:
    lm = made(name, tokenizer)
    held = write_gguf(lm, tokenizer, tmp_path / "m.gguf", kind)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    expected = said(lm)
    limit = {"f32": 1e-5, "f16": 2e-3, "q8_0": 4e-2}[kind] * float(expected.abs().max())
    assert float((said(again) - expected).abs().max()) < limit
    assert again.config.tie_word_embeddings == lm.config.tie_word_embeddings
    assert set(held) == {"f32": {"f32"}, "f16": {"f32", "f16"}, "q8_0": {"f32", "q8_0"}}[kind]
    found = _read_back(tmp_path)
    for line in LINES:
        assert found.encode(line, add_special_tokens=False) == tokenizer.encode(
            line, add_special_tokens=False
        )
    assert (found.eos_token_id, found.chat_template) == (tokenizer.eos_token_id, tokenizer.chat_template)


def test_what_is_in_the_file(tokenizer: Any, tmp_path: Path) -> None:
    lm = made("llama", tokenizer)
    write_gguf(lm, tokenizer, tmp_path / "m.gguf", "q8_0")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {t.name: t for t in reader.tensors}
    weight = lm.model.layers[1].mlp.down_proj.weight.detach()
    blocks = weight.view(64, -1, 32)
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half().float()
    numbers = gguf.quants.dequantize(
        tensors["blk.1.ffn_down.weight"].data, tensors["blk.1.ffn_down.weight"].tensor_type
    )
    assert np.abs(numbers - weight.numpy()).max() <= float(scale.max()) * 0.51
    # queries: rows (i, i + n/2) of a head become neighbours
    q = gguf.quants.dequantize(
        tensors["blk.0.attn_q.weight"].data, tensors["blk.0.attn_q.weight"].tensor_type
    )
    own = lm.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    order = [head * 16 + half * 8 + i for head in range(4) for i in range(8) for half in range(2)]
    assert np.abs(q - own[order]).max() < 2e-3
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama" and fields["llama.attention.head_count_kv"] == 2
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.tokens"][tokenizer.eos_token_id] == "<|im_end|>"
    assert fields["tokenizer.ggml.token_type"][tokenizer.eos_token_id] == 3
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template


def test_llama3_scaling_divides_frequencies_as_transformers_does() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    config = LlamaConfig(**{**SIZES, "max_position_embeddings": 512}, rope_parameters=rope)
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
    plain = 500000.0 ** (-torch.arange(0, 16, 2) / 16)
    factors = _llama3_factors(config)
    assert factors is not None and torch.allclose(plain / factors, scaled, rtol=1e-5)
    assert len(factors.unique()) > 1 and float(factors.max()) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("aquila_bpe", "qwen"))],
)
def test_real_byte_level_vocabularies(name: str, shared: Path, converted: Vocabulary, tmp_path: Path) -> None:
    source = shortened(load.load_tokenizer(str(converted(name))), 12_000)
    again = _through_a_file(source, tmp_path)
    for line in _real_lines(shared):
        assert again.encode(line, add_special_tokens=False) == source.encode(
            line, add_special_tokens=False
        ), line


@pytest.mark.slow
def test_a_real_sentencepiece_vocabulary(shared: Path, converted: Vocabulary) -> None:
    """Scores made of merges order pieces as the model file's own scores do."""
    from espalier.models.legacy.tokenizers.sentencepiece_file import read_model

    folder = shared / "data" / "tokenizers" / "baichuan2"
    source = load.load_tokenizer(str(converted("baichuan2")))
    found = vocabulary_of(source, len(source) + 64)
    pieces = read_model(folder / "tokenizer.model").pieces
    assert found.model == "llama" and not found.space_prefix and found.kinds[-1] == 5
    merged = [
        i for i, (text, _, kind) in enumerate(pieces) if kind == 1 and len(text) > 1 and found.kinds[i] == 1
    ]
    assert [found.pieces[i] for i in merged] == [pieces[i][0] for i in merged] and len(merged) > 90_000
    own = sorted(merged, key=lambda i: -pieces[i][1])
    ours = [found.scores[i] for i in own]
    least = -2 * len(source)
    reachable = [score for score in ours if score > least]
    assert sum(a < b for a, b in pairwise(reachable)) < len(reachable) * 0.02
    assert found.pieces[3 + 10] == pieces[13][0]


def _through_a_file(source: Any, folder: Path) -> Any:
    torch.manual_seed(0)
    lm = load.new_lm(
        {"model_type": "llama", **SIZES, "hidden_size": 32, "num_hidden_layers": 1}, len(source), {}
    )
    write_gguf(lm, source, folder / "m.gguf", "f16")
    return _read_back(folder)


def _read_back(folder: Path) -> Any:
    if Version(transformers.__version__) < Version("5.23"):
        pytest.skip("transformers 5.17 reads the vocabulary of a GGUF file otherwise; 5.23 was tried")
    return AutoTokenizer.from_pretrained(folder, gguf_file="m.gguf")


def _real_lines(shared: Path) -> list[str]:
    files = sorted((shared / "data").rglob("*.json*"))[:40]
    lines = [line for file in files for line in file.read_text("utf-8", errors="ignore")[:4000].splitlines()]
    return [line[:300] for line in lines if line.strip()][:400]


@pytest.mark.slow
def test_the_command_and_its_refusals(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = made("qwen2", tokenizer)
    (tmp_path / "m").mkdir()
    save_model(tmp_path / "m", TreeModel(lm, probe(lm)), tokenizer)
    out = tmp_path / "out" / "m.gguf"
    assert call("export", str(tmp_path / "m"), str(out), "--type", "q8_0") == 0
    assert out.stat().st_size > 50_000 and "q8_0" in capsys.readouterr().out
    small = load.load_lm(str(tmp_path / "m"), quantisation=Quantisation("cpm", 8))
    small.save_pretrained(tmp_path / "small")  # type: ignore[operator]
    tokenizer.save_pretrained(tmp_path / "small")
    assert call("export", str(tmp_path / "small"), str(tmp_path / "small.gguf"), "--type", "f32") == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf", dtype=torch.float32)
    assert float((said(again) - said(small)).abs().max()) < 1e-4
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    capsys.readouterr()
    for changes, line in (
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, "last 16 tokens"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope scaling of type dynamic"),
        ({"hidden_act": "gelu"}, "silu"),
    ):  # fmt: skip
        (tmp_path / "m" / "config.json").write_text(json.dumps(config | changes))
        assert call("export", str(tmp_path / "m"), str(tmp_path / "no.gguf")) == 2
        assert line in capsys.readouterr().err.replace("\n", " ") and not (tmp_path / "no.gguf").exists()
    assert call("export", str(tmp_path / "m"), str(out)) == 2
    assert call("export", str(tmp_path / "m"), str(tmp_path / "x.bin")) == 2
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=_odd())
    with pytest.raises(UserError, match="no name for"):
        vocabulary_of(other, 300)


def _odd() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    found = Tokenizer(models.BPE({"a": 0}, []))
    found.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return found


@pytest.mark.parametrize("name", list(CONFIGS))
def test_llama_cpp_computes_the_same(name: str, tokenizer: Any, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (a check by hand)")
    lm = made(name, tokenizer)
    write_gguf(lm, tokenizer, tmp_path / "m.gguf", "f32")
    other = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), n_ctx=128, verbose=False, logits_all=True, type_k=0, type_v=0, n_threads=1
    )
    ids = [7 * i % 290 for i in range(60)]
    other.eval(ids)
    with torch.no_grad():
        expected = lm(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert np.abs(np.array(other.scores[:60]) - expected).max() < 1e-4
    for line in LINES:
        found = other.tokenize(line.encode(), add_bos=False, special=True)
        assert found == tokenizer.encode(line, add_special_tokens=False)


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else real(name))
    with pytest.raises(UserError, match=r"espalier-llm\[gguf\]"):
        write_gguf(made("llama", tokenizer), tokenizer, tmp_path / "m.gguf", "f32")
