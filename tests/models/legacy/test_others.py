"""Families that transformers reads itself: loaded from a folder, probed, sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

import espalier
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
DEEPSEEK = {**SIZES, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK |= {"n_shared_experts": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8}
DEEPSEEK |= {"qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1, "topk_group": 1}
DEEPSEEK |= {"num_key_value_heads": 4}
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "llama": (SIZES, "pieces"),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, "padded"),
    "falcon": ({**SIZES, "alibi": False, "multi_query": True}, "dense"),
    "opt": ({**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}, "pieces"),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, "pieces"),
    "rwkv": ({"hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}, "padded"),
    "mistral": (SIZES, "pieces"),
    "qwen2": (SIZES, "pieces"),
    "qwen3": ({**SIZES, "head_dim": 8}, "pieces"),
    "glm": ({**SIZES, "head_dim": 8}, "pieces"),
    "glm4": ({**SIZES, "head_dim": 8}, "pieces"),
    "internlm3": (SIZES, "pieces"),
    "deepseek_v2": ({**DEEPSEEK, "n_group": 1, "head_dim": 8}, "dense"),
    "deepseek_v3": ({**DEEPSEEK, "n_group": 2}, "dense"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_through_transformers_own_classes(family: str, tmp_path: Path) -> None:
    settings, method = FAMILIES[family]
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    config = AutoConfig.for_model(family, vocab_size=99, bos_token_id=1, eos_token_id=2, **settings)
    truth = AutoModelForCausalLM.from_config(config).eval()
    for parameter in truth.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    truth.save_pretrained(str(tmp_path))
    model, _ = espalier.load_model(str(tmp_path), device="cpu")
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            assert (model(ids).logits - truth(ids).logits).abs().max() < 1e-5
    traits = probe(model)
    assert traits.method == method, traits.reason
    found = sample(model, traits, prompts, Sampling(5, temperature=0))
    for prompt, answers in zip(prompts, found, strict=True):
        row = list(prompt)
        for _ in range(5):  # the whole row again for each token, without any cache
            with torch.no_grad():
                row.append(int(truth(torch.tensor([row])).logits[0, -1].argmax()))
        assert answers[0].tokens == row[len(prompt) :]
