"""What a forward keeps, counted on tensors without content, is what autograd saves of real ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
    T5Config,
)

from espalier.plan.activations import activations

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "num_hidden_layers": 3,
    "hidden_size": 128,
    "num_attention_heads": 4,
}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SMALL, intermediate_size=320),
    "qwen3": Qwen3Config(**SMALL, intermediate_size=320, num_key_value_heads=2, head_dim=32),
    "gpt2": GPT2Config(vocab_size=97, n_layer=3, n_embd=128, n_head=4),
    "t5": T5Config(vocab_size=97, num_layers=2, d_model=128, d_ff=256, d_kv=32, num_heads=4),
}


NEAR = {"qwen3": 0.06}
"""Keys of grouped queries are repeated where no real tensors are, a few per cent of a model of this size."""


def made(name: str, device: str) -> nn.Module:
    config = CONFIGS[name]
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device(device):
        return kind.from_config(config).eval()  # type: ignore[no-any-return]


def saved(lm: nn.Module, rows: int, length: int, bits: int) -> int:
    own = {p.untyped_storage().data_ptr() for p in [*lm.parameters(), *lm.buffers()]}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    ids = torch.randint(0, 97, (rows, length))
    given = {"input_ids": ids, "use_cache": False}
    if lm.config.is_encoder_decoder:  # type: ignore[union-attr]
        given["decoder_input_ids"] = ids
    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bits == 16),
    ):
        lm(**given)
    return sum(sizes.values())


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_as_real_tensors(name: str, bits: int) -> None:
    real, found = made(name, "cpu"), activations(made(name, "meta"), 24, bits)
    assert found.counted
    one, three = (saved(real, rows, 24, bits) for rows in (1, 3))
    assert found.casts + found.row == pytest.approx(one, rel=NEAR.get(name, 0.02))
    assert found.casts + 3 * found.row == pytest.approx(three, rel=NEAR.get(name, 0.02))
    assert (found.casts > sum(p.numel() for p in real.parameters())) == (bits == 16), "weights in 16 bits"


def test_more_tokens_and_more_layers_keep_more() -> None:
    short, long = (activations(made("llama", "meta"), length, 32).row for length in (16, 64))
    assert 3.5 * short < long < 6 * short
    plain = activations(made("llama", "meta"), 16, 16, mixed=False)
    assert plain.casts < 5000 < plain.row


def test_a_forward_that_looks_into_its_tensors_falls_back_to_the_formula() -> None:
    lm = made("llama", "meta")
    lm.forward = lambda input_ids, **_: {}[int(input_ids.sum())]  # type: ignore[method-assign]
    found = activations(lm, 16, 16)
    assert not found.counted and found.row == 34 * 16 * 128 * 3
