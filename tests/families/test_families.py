"""Each family of transformers from a tiny random model to an answer: sft, merge, evaluate, chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.models.saved import save_model
from tests.conftest import Golden
from tests.families.chain import SAID, from_sft_to_chat

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
GROUPED = SIZES | {"num_key_value_heads": 1}
BLOOM = {"hidden_size": 16, "n_layer": 2, "n_head": 2}
DEEPSEEK = SIZES | {
    "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "glm4": GROUPED | {"head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "opt": SIZES | {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "bloom": BLOOM,
    "falcon": SIZES | {"alibi": False, "new_decoder_architecture": False, "multi_query": True},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 128},
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "context_length": 128},
    "deepseek_v3": DEEPSEEK,
}


def saved(folder: Path, model_type: str, sizes: dict[str, Any]) -> Path:
    """A new model with a tokenizer that knows the tests' characters."""
    tokenizer = load.train_tokenizer(["".join(line) for line in SAID] * 4, 330)
    torch.manual_seed(0)
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    lm = load.new_lm({"model_type": model_type, **sizes}, len(tokenizer), ids)
    folder.mkdir()
    save_model(folder, TreeModel(lm, probe(lm)), tokenizer)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_from_sft_to_chat(family: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "base", family, FAMILIES[family])
    from_sft_to_chat(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["aquila", "baichuan_13b", "baichuan2_13b", "chatglm2", "internlm", "moss"]
)
def test_an_old_checkpoint_with_a_new_tokenizer(family: str, golden: Golden, tmp_path: Path) -> None:
    """Families whose vocabulary is not at hand or large; the others go with theirs in tests/models/legacy."""
    words = tmp_path / "words"
    load.train_tokenizer(["".join(line) for line in SAID] * 4, 330).save_pretrained(str(words))
    from_sft_to_chat(golden(family), tmp_path, tokenizer=str(words))
