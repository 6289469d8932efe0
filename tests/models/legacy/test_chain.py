"""A tiny old checkpoint in its original folder, all the way: sft, merge, score, chat."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import espalier
from espalier.cli import app
from espalier.models.legacy.conversion import Conversion
from espalier.models.legacy.families import conversion_of
from espalier.models.open import OpenModel
from espalier.serve.model import ServedModel
from espalier.serve.session import Session
from espalier.serve.settings import AnswerSettings
from tests.conftest import Vocabulary
from tests.golden.vocabularies import train
from tests.models.legacy.plain import write

TINY = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "pangu": (
        "pangu",
        {"model_type": "gpt_pangu", "vocab_size": 40000, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
        | {"max_position_embeddings": 128},
    ),
    "glm": (
        "glm_chinese_sp",
        {"model_type": "glm", "vocab_size": 50048, "hidden_size": 16, "num_layers": 2}
        | {"num_attention_heads": 2, "max_sequence_length": 128, "block_position_encoding": True},
    ),
    "qwen": (
        "qwen",
        {"model_type": "qwen", "vocab_size": 151936, "kv_channels": 8, **TINY, "seq_length": 128}
        | {"use_dynamic_ntk": True, "use_logn_attn": True, "tie_word_embeddings": False},
    ),
    "baichuan2": (
        "baichuan2",
        {"model_type": "baichuan", "vocab_size": 125696, **TINY, "model_max_length": 128}
        | {"tie_word_embeddings": False},
    ),
    "aquila": ("aquila_bpe", {"model_type": "aquila", "vocab_size": 100008, **TINY}),
}
SAID = [
    ("一加一等于几？", "二。"),
    ("天空是什么颜色？", "蓝色。"),
    ("say hello", "hello there"),
    ("你好", "你好呀"),
]


def original(state: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The names of today back to the old ones, by asking the conversion where each old name goes."""
    if config["model_type"] == "baichuan":
        layers = [n for n in state if ".q_proj." in n]
        for name in layers:
            parts = [state.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
            state[name.replace("q_proj", "W_pack")] = torch.cat(parts)
    if config["model_type"] == "qwen":
        new = {
            "model.embed_tokens": "wte",
            "model.norm": "ln_f",
            "model.layers": "h",
            "input_layernorm": "ln_1",
        }
        new |= {"post_attention_layernorm": "ln_2", "self_attn": "attn", "o_proj": "c_proj"}
        new |= {"up_proj": "w1", "gate_proj": "w2", "down_proj": "c_proj"}
        for name in [n for n in state if ".q_proj." in n]:
            parts = [state.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
            state[name.replace("q_proj", "c_attn")] = torch.cat(parts)
        renamed = {}
        for name, tensor in state.items():
            for today, old in new.items():
                name = name.replace(today, old)
            renamed[name if name.startswith("lm_head") else f"transformer.{name}"] = tensor
        state = renamed
    if config["model_type"] == "glm":
        state = {
            n.replace("transformer.word_", "word_"): t for n, t in state.items() if n != "lm_head.weight"
        }
    return state


LARGE = ("qwen", "baichuan2", "aquila")
"""Their vocabularies take seconds to convert, which is tested beside them; here small ones stand in the same files."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_with_a_vocabulary(
    name: str, vocabulary: Vocabulary, made_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    words, config = CONFIGS[name]
    folder = untrained(config, tmp_path)
    for file in (made_vocabulary if name in LARGE else vocabulary)(words).iterdir():
        if file.is_file() and file.name != "LICENSE.source":
            shutil.copy(file, folder)
    from_the_original_folder_to_an_answer(folder, tmp_path)


@pytest.mark.slow
def test_chatglm_6b(tmp_path: Path) -> None:
    blanks = [f"<|blank_{k}|>" for k in range(2, 81)]
    symbols = ["<n>", "<|tab|>", *blanks, "[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>"]
    options = {"user_defined_symbols": symbols, "byte_fallback": True, "pad_id": 3}
    pieces = train(tmp_path / "old", "ice_text.model", vocab_size=800, **options)
    ids = {
        "bos_token_id": "<sop>",
        "eos_token_id": "<eop>",
        "mask_token_id": "[MASK]",
        "gmask_token_id": "[gMASK]",
    }
    config = {"model_type": "chatglm", "vocab_size": 800, "hidden_size": 16, "inner_hidden_size": 32}
    config |= {"num_layers": 2, "num_attention_heads": 2, "max_sequence_length": 128, "pad_token_id": 3}
    config |= {name: pieces.piece_to_id(text) for name, text in ids.items()}
    from_the_original_folder_to_an_answer(untrained(config, tmp_path), tmp_path)


def untrained(config: dict[str, Any], tmp_path: Path) -> Path:
    """A folder in the original layout with random weights."""
    conversion: Conversion = conversion_of(config)
    torch.manual_seed(0)
    model: Any = conversion.model(conversion.config)
    return write(tmp_path / "old", config, original(dict(model.state_dict()), config))


def from_the_original_folder_to_an_answer(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    records = [{"prompt": q, "completion": a} for q, a in SAID]
    data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    options: dict[str, Any] = {"stage": "sft", "model_name_or_path": str(folder), "dataset": str(data)}
    options |= {"output_dir": str(tmp_path / "run"), "max_steps": 12, "learning_rate": 3e-2, "cutoff_len": 64}
    options |= {
        "finetuning_type": "lora",
        "lora_rank": 4,
        "per_device_train_batch_size": 4,
        "precision": "fp32",
    }
    file = tmp_path / "sft.yaml"
    file.write_text(json.dumps(options), "utf-8")
    espalier.run(str(file))
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "run" / "sft" / "metrics.jsonl").read_text("utf-8").splitlines()
        if "loss" in json.loads(line)
    ]
    assert losses[-1] < losses[0]
    assert all(map(math.isfinite, losses))
    adapter = tmp_path / "run" / "sft" / "model"
    tuned, tokenizer = espalier.load_model(str(adapter), device="cpu")
    scores = espalier.score(tuned, tokenizer, "一加一等于几？", ["二。", "蓝色。"])
    assert all(math.isfinite(value) and tokens > 0 for value, tokens in scores)
    merged = tmp_path / "merged"
    done = CliRunner().invoke(app, ["merge", str(adapter), str(merged)])
    assert done.exit_code == 0, done.exception
    plain, plain_tokenizer = espalier.load_model(str(merged), device="cpu")
    again = espalier.score(plain, plain_tokenizer, "一加一等于几？", ["二。", "蓝色。"])
    assert [s for s, _ in again] == pytest.approx([s for s, _ in scores], abs=1e-3)
    served = ServedModel("merged", OpenModel(str(merged), plain, plain_tokenizer, None))
    session = Session(served, AnswerSettings(max_new_tokens=8, temperature=0))
    for question in ("你好", "say hello"):
        assert all(isinstance(text, str) for _, text in session.ask(question))
    served.close()
    assert len(session.messages) == 4
