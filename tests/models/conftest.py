"""Tiny random models of many architectures, with weights large enough that attention matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from espalier.models.load import new_lm
from espalier.trees import Path, Tree

VOCABULARY = 99
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 128}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_LLAMA},
    "qwen2": {"model_type": "qwen2", **_LLAMA},
    "qwen3": {"model_type": "qwen3", **_LLAMA, "head_dim": 8},
    "gpt2": {"model_type": "gpt2", **_GPT},
    "opt": {
        "model_type": "opt",
        **_SIZES,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 128,
    },
    "falcon": {"model_type": "falcon", **_SIZES, "alibi": False, "multi_query": True},
    "glm": {"model_type": "glm", **_LLAMA, "head_dim": 8},
    "codegen": {"model_type": "codegen", **_GPT, "rotary_dim": 4},
    "mistral": {"model_type": "mistral", **_LLAMA, "sliding_window": 8},
    "gemma2": {"model_type": "gemma2", **_LLAMA, "head_dim": 8, "sliding_window": 8},
    "cohere": {"model_type": "cohere", **_LLAMA},
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"model_type": "mpt", "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "falcon-alibi": {"model_type": "falcon", **_SIZES, "alibi": True, "multi_query": True},
}

Tiny = Callable[..., nn.Module]


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    def make(name: str, seed: int = 0, **settings: Any) -> nn.Module:
        torch.manual_seed(seed)
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        lm = new_lm({**CONFIGS[name], **settings}, VOCABULARY, ids)
        for parameter in lm.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.18)
        return lm.eval()

    return make


def random_tokens(n: int, seed: int) -> list[int]:
    maker = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (n,), generator=maker).tolist()


@pytest.fixture(scope="session")
def trees() -> list[Tree]:
    """Branches below branches, longer than a window of 8, a gap in the trained tokens, and a lone document."""
    trunk, question = random_tokens(11, 1), random_tokens(4, 2)
    paths: list[Path] = []
    for i, (prefix, n) in enumerate([(trunk, 3), (trunk, 5), (trunk + question, 4), (trunk + question, 2)]):
        flags = [False] * len(prefix) + [True] * n
        if i == 2:
            flags[len(prefix) + 1] = False
        paths.append((prefix + random_tokens(n, 10 + i), flags))
    lone = random_tokens(6, 20)
    return [Tree.join(paths), Tree.from_path(lone, [False] + [True] * 5)]
