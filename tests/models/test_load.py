"""Loading: each wrong folder has its own message with the remedy; freezing; tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from espalier.data.encode.encoding import Piece, encode_pieces, encode_texts
from espalier.errors import UserError
from espalier.models.adapters.freezing import blocks, freeze_lowest
from espalier.models.load import (
    checkpoint_activations,
    end_tokens,
    fit_vocabulary,
    hidden_size,
    load_lm,
    load_tokenizer,
    new_lm,
    read_config,
    train_tokenizer,
    without_dropout,
)
from espalier.models.load_adapted import load_with_adapter
from tests.conftest import Vocabulary

Tiny = Callable[..., nn.Module]
TOKENS: dict[str, int | None] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TEXTS = [
    "The quick brown fox jumps over the lazy dog.\n\n  Indented,\ttabbed.",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 and é vs é, ½, \u200b, العربية",
    "",
]


def config_only(folder: Path, lm: nn.Module) -> None:
    lm.config.save_pretrained(str(folder))


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder. Check the path"):
        load_lm(str(tmp_path / "nowhere"))


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        load_lm(str(file))


def test_a_folder_without_config_says_what_it_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json here \(found nothing\)"):
        load_lm(str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"found notes\.txt"):
        load_lm(str(tmp_path))


def test_a_folder_without_weights(tiny: Tiny, tmp_path: Path) -> None:
    config_only(tmp_path, tiny("llama"))
    with pytest.raises(UserError, match=r"without weights \(no \*\.safetensors\).*model_config"):
        load_lm(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_a_folder_with_pickles_only_is_never_read(tiny: Tiny, tmp_path: Path, name: str) -> None:
    config_only(tmp_path, tiny("llama"))
    (tmp_path / name).write_bytes(b"not even a pickle")
    with pytest.raises(UserError, match=rf"{name}.*convert them to safetensors"):
        load_lm(str(tmp_path))


def test_another_kind_of_model(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        load_lm(str(tmp_path))


def test_broken_weights_are_the_users_error(tiny: Tiny, tmp_path: Path) -> None:
    config_only(tmp_path, tiny("llama"))
    (tmp_path / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_lm(str(tmp_path))


def test_an_adapter_that_names_no_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="base_model_name_or_path"):
        load_with_adapter(str(tmp_path))


def test_a_new_model_from_a_configuration() -> None:
    config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    lm: Any = new_lm({**config, "intermediate_size": 16}, 50, TOKENS)
    assert lm.get_input_embeddings().weight.shape == (50, 16)
    assert (lm.config.eos_token_id, lm.config.pad_token_id) == (2, 0)
    assert next(lm.parameters()).dtype == torch.float32
    assert hidden_size(lm) == 16
    larger: Any = new_lm({**config, "vocab_size": 64}, 50, TOKENS)
    assert larger.get_input_embeddings().weight.shape[0] == 64
    with pytest.raises(UserError, match="model_type: qwen3"):
        new_lm({"hidden_size": 16}, 50, TOKENS)
    with pytest.raises(UserError, match="model_config"):
        new_lm({"model_type": "no-such-thing"}, 50, TOKENS)


def test_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "tiny.json"
    file.write_text('{"model_type": "gpt2"}')
    assert read_config(str(file)) == read_config({"model_type": "gpt2"}) == {"model_type": "gpt2"}
    file.write_text('{\n"model_type": }')
    with pytest.raises(UserError, match=r"tiny\.json:2: not valid JSON"):
        read_config(str(file))
    file.write_text("[1]")
    with pytest.raises(UserError, match="JSON object"):
        read_config(str(file))
    with pytest.raises(UserError, match="cannot read"):
        read_config(str(tmp_path / "none.json"))


def test_no_dropout_is_left(tiny: Tiny) -> None:
    for name in ("gpt2", "opt", "falcon", "bloom", "codegen"):
        lm = tiny(name).train()
        rates = [m.p for m in lm.modules() if isinstance(m, nn.Dropout)]
        assert not any(rates), name
        ids = torch.tensor([[5, 6, 7]])
        assert torch.equal(lm(input_ids=ids).logits, lm(input_ids=ids).logits)
    config = tiny("gpt2").config
    config.resid_pdrop = 0.1
    assert without_dropout(config).resid_pdrop == 0.0


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "codegen", "mpt"])
def test_blocks_are_found(tiny: Tiny, name: str) -> None:
    found = blocks(tiny(name))
    assert len(found) == 2
    assert len({type(block) for block in found}) == 1


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(
    ("name", "layers"), [("llama", "num_hidden_layers"), ("gpt2", "n_layer"), ("opt", "num_hidden_layers")]
)
def test_frozen_blocks_get_no_gradients_and_keep_no_activations(
    tiny: Tiny, name: str, layers: str, checkpointed: bool
) -> None:
    lm = tiny(name, **{layers: 4}).train()
    assert freeze_lowest(lm, 0.5) == 2
    if checkpointed:
        checkpoint_activations(lm)
    entering: list[bool] = []
    for block in blocks(lm):
        block.register_forward_pre_hook(
            lambda _m, args, kwargs: entering.append(
                (args[0] if args else kwargs["hidden_states"]).requires_grad
            ),
            with_kwargs=True,
        )
    loss = lm(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits.logsumexp(-1).sum()
    assert entering == [False, False, False, True]
    loss.backward()
    for i, block in enumerate(blocks(lm)):
        for parameter in block.parameters():
            assert (parameter.grad is None) == (i < 2)
    assert lm.get_input_embeddings().weight.grad is None  # type: ignore[operator]


def test_a_share_of_the_blocks_is_rounded_up(tiny: Tiny) -> None:
    """As the predecessors' figures have it; 0.55 * 20, which is a little more than 11 in floats, is 11."""
    lm = tiny("llama")
    assert freeze_lowest(lm, 0.0) == 0
    assert all(p.requires_grad for p in lm.parameters())
    for ratio, layers, frozen in ((0.4, 2, 1), (0.7, 4, 3), (0.55, 20, 11), (0.7, 10, 7), (1.0, 2, 2)):
        assert freeze_lowest(tiny("llama", num_hidden_layers=layers), ratio) == frozen


def test_embeddings_may_be_trained_below_frozen_blocks(tiny: Tiny) -> None:
    lm = tiny("gpt2", n_layer=4).train()
    assert freeze_lowest(lm, 0.5, embeddings=False) == 2
    lm(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits.logsumexp(-1).sum().backward()
    without = [name for name, p in lm.named_parameters() if p.grad is None]
    assert without and all(".h.0." in name or ".h.1." in name for name in without)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aquila_bpe", "gpt2"])
def test_folders_in_the_form_of_gpt2_round_trip(vocabulary: Vocabulary, name: str) -> None:
    tokenizer = load_tokenizer(str(vocabulary(name)))
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer.pad_token_id is not None
    assert tokenizer.eos_token_id is not None


def test_a_bare_folder_gets_chatml_whose_marks_are_single_tokens(vocabulary: Vocabulary) -> None:
    tokenizer = load_tokenizer(str(vocabulary("gpt2")))
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"found model\.safetensors.*vocab\.json with merges\.txt"):
        load_tokenizer(str(tmp_path))


def test_a_trained_tokenizer_round_trips_what_it_has_never_seen(tmp_path: Path) -> None:
    made = train_tokenizer(["hello hello world", "明月 明月"] * 20, 300)
    made.save_pretrained(str(tmp_path))
    for tokenizer in (made, load_tokenizer(str(tmp_path))):
        assert len(tokenizer) <= 300
        for text in TEXTS:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
            assert max(ids, default=0) < len(tokenizer)
        assert len(tokenizer("hello")["input_ids"]) < 5
        assert len(tokenizer("<|im_start|>")["input_ids"]) == 1
        assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
        assert tokenizer.chat_template


def test_end_tokens_and_vocabulary_of_a_pair(tiny: Tiny) -> None:
    tokenizer = train_tokenizer(["a b c"], 300)
    lm: Any = tiny("llama")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_tokens(lm, tokenizer) == sorted({end, 2})
    lm.generation_config.eos_token_id = [7, 9]
    assert end_tokens(lm, tokenizer) == sorted({end, 7, 9})
    grown = fit_vocabulary(lm, tokenizer)
    assert grown == len(tokenizer) - 99
    assert lm.get_output_embeddings().weight.shape[0] == len(tokenizer)
    assert fit_vocabulary(lm, tokenizer) == 0


def test_a_length_in_tokenizer_json_cuts_and_fills_nothing(tmp_path: Path) -> None:
    made = train_tokenizer(["the quick brown fox"] * 4, 300)
    made.save_pretrained(str(tmp_path))
    file = tmp_path / "tokenizer.json"
    said = json.loads(file.read_text("utf-8"))
    said["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    said["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    said["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    file.write_text(json.dumps(said), "utf-8")
    tokenizer = load_tokenizer(str(tmp_path))
    for text in ("the quick brown fox " * 9, "the"):
        ((ids,)) = encode_texts(tokenizer, [text])
        assert ids == made.encode(text)
        assert encode_pieces(tokenizer, [[Piece(text, True)]], bos=False) == [(ids, [True] * len(ids))]
