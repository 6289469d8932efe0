"""Families whose vocabulary is not at hand, on sentencepiece models that are trained here in their layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import UserError
from espalier.models.legacy.tokenizers.sentencepiece_file import read_model
from espalier.models.load import load_tokenizer
from tests.golden.vocabularies import LLAMA, train
from tests.models.legacy.tokenizers.conftest import HARD

TEXTS = [
    *("你好  明月 the fox", " the  quick ", "床前明月光，疑是地上霜。", "a\nb\n\n c\t\td", "people  develop"),
    *(
        "人工智能 <n> x",
        "    indented\n        more",
        "[MASK] sop eop <s> </s>",
        "é 😀 汉字",
        "",
        " ",
        "\n",
        *HARD,
    ),
]


def reloaded(folder: Path, tmp_path: Path) -> list[Any]:
    made = load_tokenizer(str(folder))
    made.save_pretrained(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    return [made, load_tokenizer(str(tmp_path / "saved"))]


@pytest.mark.parametrize("symbols", [[], ["<eoh>", "<eoa>", "\n"]])
def test_internlm(symbols: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "old"
    truth = train(folder, "tokenizer.model", user_defined_symbols=symbols, **LLAMA)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "InternLMTokenizer"}')
    texts = [text for text in [*TEXTS, "<|User|>:你好<eoh>\n<|Bot|>:明月<eoa>\n"] if "<s>" not in text]
    for tokenizer in reloaded(folder, tmp_path):
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert ids == truth.encode(text), text
            assert tokenizer.decode(ids) == truth.decode(ids)
            assert tokenizer(text)["input_ids"] == [1, *ids]
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


@pytest.mark.parametrize("third", [False, True])
def test_chatglm2_and_3(third: bool, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    truth = train(folder, "tokenizer.model", **LLAMA)
    n = truth.get_piece_size()
    roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"] if third else []
    said = {"tokenizer_class": "ChatGLMTokenizer", "additional_special_tokens": roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    for tokenizer in reloaded(folder, tmp_path):
        for text in TEXTS:
            if "</s>" in text or "[MASK]" in text:
                continue
            own = truth.encode(text)
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == own, text
            assert tokenizer(text)["input_ids"] == [n + 1, n + 3, *own]
            assert tokenizer.decode(own) == truth.decode(own)
        a, b = truth.encode("the fox"), truth.encode("明月")
        assert tokenizer("the fox", "明月")["input_ids"] == [n + 1, n + 3, *a, *b, 2]
        # names of special tokens in a text are text
        assert not {n + 3, n + 4} & set(
            tokenizer("people sop eop [gMASK]", add_special_tokens=False)["input_ids"]
        )
        batch = tokenizer(["the fox", "明月 the quick brown fox"], padding=True)
        assert batch["attention_mask"][0][0] == 0
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
        marked = tokenizer("<|user|>\n你", add_special_tokens=False)["input_ids"]
        assert (n + 6 in marked) == third


@pytest.mark.parametrize("images", [0, 20000])
def test_chatglm_6b(images: int, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    blanks = [f"<|blank_{k}|>" for k in range(2, 81)]
    symbols = ["<n>", "<|tab|>", *blanks, "[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>"]
    truth = train(
        folder,
        "ice_text.model",
        vocab_size=800,
        user_defined_symbols=symbols,
        byte_fallback=True,
        pad_id=3,
    )
    (folder / "config.json").write_text(json.dumps({"vocab_size": 150528 if images else 130528}))

    def ids_of(text: str) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        text = re.sub(" {2,80}", lambda run: f"<|blank_{len(run[0])}|>", text)
        return [images + i for i in truth.encode(text)]

    gmask, sop, eop = (images + truth.piece_to_id(text) for text in ("[gMASK]", "<sop>", "<eop>"))
    for tokenizer in reloaded(folder, tmp_path):
        for text in TEXTS:
            if any(mark in text for mark in ("[MASK]", "</s>", "<unk>", "ｱ")):
                continue
            ids = ids_of(text)
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
            assert tokenizer(text)["input_ids"] == [*ids, gmask, sop]
        a, b = ids_of("the fox"), ids_of("明月")
        assert tokenizer("the fox", "明月")["input_ids"] == [*a, gmask, sop, *b, eop]
        code = "def f():\n    return  1\t# x\n\n        y"
        assert tokenizer.decode(ids_of(code), skip_special_tokens=True) == code
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (sop, eop)
        blank = images + truth.piece_to_id("▁")  # a lone space once made the decoder panic
        assert tokenizer.decode([blank]) == tokenizer.decode([blank, gmask], skip_special_tokens=True) == ""
        assert tokenizer.decode([]) == ""
        assert tokenizer.padding_side == "left"


def test_glm_4(tmp_path: Path, shared: Path) -> None:
    import tiktoken

    from espalier.models.legacy.tokenizers.tiktoken_model import GLM_4, read_ranks

    folder = tmp_path / "old"
    folder.mkdir()
    lines = (shared / "data" / "tokenizers" / "qwen" / "qwen.tiktoken").read_bytes().splitlines()[:20000]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines))
    names = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|user|>"]
    special = {name: 20000 + i for i, name in enumerate(names)}
    said = {"tokenizer_class": "ChatGLM4Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="added_tokens_decoder"):
        load_tokenizer(str(folder))
    said["added_tokens_decoder"] = {str(i): {"content": name} for name, i in special.items()}  # type: ignore[assignment]
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    truth = tiktoken.Encoding(
        "glm-4", pat_str=GLM_4, mergeable_ranks=read_ranks(folder / "tokenizer.model"), special_tokens=special
    )
    for tokenizer in reloaded(folder, tmp_path):
        for text in [*TEXTS, "<|user|>\n12345678"]:
            ids = truth.encode(text, allowed_special="all")
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
            assert tokenizer(text)["input_ids"] == [20002, 20004, *ids]


@pytest.mark.slow
def test_moss(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "tokenizers" / "gpt2"
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / "added_tokens.json").write_text('{"<eom>": 50258, "<eoh>": 50257}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "MossTokenizer"}')
    for tokenizer in reloaded(folder, tmp_path):
        assert tokenizer.convert_tokens_to_ids(["<eoh>", "<eom>"]) == [50257, 50258]
        assert tokenizer("hi<eom>")["input_ids"] == [5303, 50258]
        assert tokenizer.eos_token_id == 50258


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "cog-pretrain.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match=r"cog-pretrain\.model: is no sentencepiece model.*Git LFS"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="sentencepiece"):
        read_model(tmp_path / "cog-pretrain.model")
    (tmp_path / "cog-pretrain.model").unlink()
    (tmp_path / "qwen.tiktoken").write_text("IQ== 0\nnot base64\n")
    with pytest.raises(UserError, match=r"qwen\.tiktoken:2"):
        load_tokenizer(str(tmp_path))
