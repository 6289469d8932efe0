"""An evaluator that shares nothing: one whole sequence at a time through the plain model of transformers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from tests.golden.shortened import shortened

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "model_type": "llama", "intermediate_size": 64, "num_key_value_heads": 2},
    "qwen2": {**SIZES, "model_type": "qwen2", "intermediate_size": 64, "num_key_value_heads": 2},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4},
}


def model_of(name: str, tokenizer: Any, **changes: Any) -> TreeModel:
    """A random model that prefers something, unlike an untrained one."""
    torch.manual_seed(0)
    lm = load.new_lm({**CONFIGS[name], **changes}, len(tokenizer), {"eos_token_id": tokenizer.eos_token_id})
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5)
    return TreeModel(lm, probe(lm)).eval()


def encoded(tokenizer: Any, text: str) -> list[int]:
    """A text as a user's own call encodes it, without an end token."""
    ids = list(tokenizer(text)["input_ids"])
    ends = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]
    return ids[:-1] if ends else ids


def first_token(tokenizer: Any) -> int:
    """What a sequence begins with where nothing stands before the scored text."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def alone(lm: Any, tokenizer: Any, prompt: str, candidate: str, scored_from: int = 0) -> tuple[float, int]:
    """Sum and number of the logprobs after what stands before the scored text."""
    before = encoded(tokenizer, prompt + candidate[:scored_from])
    whole = encoded(tokenizer, prompt + candidate)
    start = 0
    while start < min(len(before), len(whole)) and before[start] == whole[start]:
        start += 1
    if start == 0:
        whole, start = [first_token(tokenizer), *whole], 1
    before_attention = lm.config._attn_implementation
    lm.set_attn_implementation("sdpa" if lm.config.model_type != "bloom" else "eager")
    with torch.no_grad():
        keep = len(whole) - start + 1
        logits = lm(input_ids=torch.tensor([whole]), logits_to_keep=keep).logits[0].float()
    lm.set_attn_implementation(before_attention)
    logprobs = logits[:-1].log_softmax(-1)
    labels = torch.tensor(whole[start:])
    return float(logprobs.gather(1, labels[:, None]).double().sum()), len(labels)


@lru_cache
def tokenizer_of(folder: str) -> Any:
    """A folder's tokenizer; of a large one the first pieces, for what they are asked costs by the piece."""
    tokenizer = load.load_tokenizer(folder)
    return shortened(tokenizer, 20_000) if len(tokenizer) > 30_000 else tokenizer
