"""The config.json of each old family, tiny, with the keys that its original code writes.

A key that equals the default of the old transformers is left out, as the original leaves it out.
"""

from __future__ import annotations

from typing import Any

_LLAMA: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": 257,
    "tie_word_embeddings": False,
}
_WIDE = _LLAMA | {"hidden_size": 64, "intermediate_size": 48}
_ALIBI: dict[str, Any] = {k: v for k, v in _WIDE.items() if k != "max_position_embeddings"}
_ALIBI |= {
    "model_max_length": 64,
    "gradient_checkpointing": [False],
    "architectures": ["BaichuanForCausalLM"],
}
_SECOND = {"tokenizer_class": "BaichuanTokenizer", "z_loss_weight": 0, "model_type": "baichuan"}
_QWEN: dict[str, Any] = {
    "model_type": "qwen",
    "architectures": ["QWenLMHeadModel"],
    "bf16": False,
    "fp16": False,
    "fp32": True,
    "kv_channels": 16,
    "layer_norm_epsilon": 1e-6,
    "no_bias": True,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 24,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "use_flash_attn": False,
    "vocab_size": 257,
}
_THUDM: dict[str, Any] = {"hidden_size": 64, "num_layers": 3, "num_attention_heads": 4, "vocab_size": 257}

CONFIGS: dict[str, dict[str, Any]] = {
    "aquila": _LLAMA
    | {"model_type": "aquila", "architectures": ["AquilaForCausalLM"], "num_key_value_heads": 4}
    | {"rope_theta": 10000.0, "rope_scaling": None, "pretraining_tp": 1},
    "baichuan_7b": _WIDE | {"model_type": "baichuan", "architectures": ["BaiChuanForCausalLM"]},
    "baichuan_13b": _ALIBI | {"model_type": "baichuan"},
    "baichuan2_7b": _LLAMA | _SECOND | {"architectures": ["BaichuanForCausalLM"], "model_max_length": 64},
    "baichuan2_13b": _ALIBI | _SECOND,
    "chatglm": _THUDM
    | {"model_type": "chatglm", "architectures": ["ChatGLMModel"], "inner_hidden_size": 96}
    | {"layernorm_epsilon": 1e-5, "max_sequence_length": 64, "position_encoding_2d": True}
    | {"bos_token_id": 244, "eos_token_id": 245, "gmask_token_id": 241, "mask_token_id": 240}
    | {"pad_token_id": 3, "pre_seq_len": None, "quantization_bit": 0},
    "chatglm2": _THUDM
    | {"model_type": "chatglm", "architectures": ["ChatGLMModel"], "ffn_hidden_size": 64, "kv_channels": 16}
    | {"add_bias_linear": False, "add_qkv_bias": True, "multi_query_attention": True}
    | {"multi_query_group_num": 2, "layernorm_epsilon": 1e-5, "padded_vocab_size": 257, "seq_length": 64}
    | {"rmsnorm": True, "post_layer_norm": True, "apply_residual_connection_post_layernorm": False}
    | {"eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False, "quantization_bit": 0},
    "glm": _THUDM
    | {"model_type": "glm", "architectures": ["GLMModel"], "block_position_encoding": True}
    | {"max_sequence_length": 64, "relative_encoding": False, "output_predict": True, "pad_token_id": 240},
    "internlm": _LLAMA | {"model_type": "internlm", "architectures": ["InternLMForCausalLM"], "bias": True},
    "moss": {"model_type": "moss", "architectures": ["MossForCausalLM"], "activation_function": "gelu_new"}
    | {"bos_token_id": 250, "eos_token_id": 251, "layer_norm_epsilon": 1e-5, "n_ctx": 64, "n_embd": 64}
    | {"n_head": 4, "n_inner": 96, "n_layer": 3, "n_positions": 64, "rotary_dim": 8, "vocab_size": 257}
    | {"tie_word_embeddings": False, "wbits": 32, "groupsize": 128},
    "pangu": {"model_type": "gpt_pangu", "architectures": ["GPTPanguForCausalLM"], "vocab_size": 257}
    | {"activation_function": "gelu", "hidden_size": 64, "intermediate_size": None, "num_layers": 3}
    | {"num_heads": 4, "layer_norm_epsilon": 1e-5, "max_position_embeddings": 64, "scale_attn_weights": True}
    | {"bos_token_id": 1, "eos_token_id": 9, "pad_token_id": 6},
    "qwen": _QWEN
    | {"hidden_size": 64, "intermediate_size": 112, "max_position_embeddings": 64}
    | {"num_attention_heads": 4, "num_hidden_layers": 3},
    "qwen_v0": _QWEN
    | {
        "activation": "swiglu",
        "ffn_hidden_size": 96,
        "n_embd": 64,
        "n_head": 4,
        "n_inner": None,
        "n_layer": 2,
    }
    | {"n_positions": 64, "padded_vocab_size": 257, "pos_emb": "rotary", "eos_token_id": 151643},
    "xverse": {k: v for k, v in _LLAMA.items() if k != "pad_token_id"}
    | {"model_type": "xverse", "architectures": ["XverseForCausalLM"]},
}
"""By the names of the recorded checkpoints."""
