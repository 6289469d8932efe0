"""Small vocabularies in the files of the real ones: trained here, for machines without the real ones.

What they hold: that a folder is recognised by its files, that its special tokens get their ids and roles, that texts
go there and back. What they do not hold: the ids of the real vocabularies, which are beside the recorded checkpoints.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ZH = "床前明月光疑是地上霜举头望明月低头思故乡春眠不觉晓处处闻啼鸟夜来风雨声花落知多少"
SENTENCE = "the quick brown fox jumps over a lazy dog while people develop their own tools for 2023 and 3.14"
EN = SENTENCE.split()
OFTEN = ["中国", "北京", "上海", "的首都是", "你好", "我来自中国", "一加一等于几", "问：", "答："]
OFTEN += [" running", " hello world", " word", " yes", " no", "Question:", "Answer:", " The moon is round."]
OFTEN += [
    "About sports",
    "About money market",
    "user",
    "assistant",
    "system",
    "It is a tree.",
    "It is a cat.",
    "short",
]
OFTEN += [
    " What is 1 + 2 = 3",
    " five",
    " fifty",
    " five fifty-five",
    "好的",
    "再见",
    "走好",
    "树怎么说",
    "question",
    "answer",
    " a b c d",
    "b c d",
]
"""Whole tokens in a vocabulary that has seen them often."""


def lines(seed: int = 0, many: int = 3000) -> list[str]:
    """Sentences of random words in both languages."""
    drawn = random.Random(seed)
    found = []
    for _ in range(many):
        words = drawn.choices(EN, k=5) + ["".join(drawn.choices(ZH, k=drawn.randint(2, 8))) for _ in range(3)]
        drawn.shuffle(words)
        found.append(" ".join(words))
    return found


def train(folder: Path, name: str, **options: Any) -> Any:
    """A sentencepiece model (BPE where nothing else is said) trained into `folder`; its processor."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    settings = {"vocab_size": 600, "model_type": "bpe", "character_coverage": 1.0, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines(), *OFTEN * 20]),
        model_prefix=str(folder / name.removesuffix(".model")),
        **(settings | options),
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / name))


LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}


def byte_level(texts: list[str], size: int, special: list[str]) -> Any:
    """A byte-level BPE in GPT-2's form, the special tokens first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made


def _gpt2(folder: Path) -> None:
    """English: Chinese characters are cut into bytes."""
    english = [line.encode("ascii", "ignore").decode() for line in lines()]
    often = [text for text in OFTEN if text.isascii()]
    byte_level(english + often * 50, 700, ["<|endoftext|>"]).model.save(str(folder))


def _aquila(folder: Path) -> None:
    byte_level(lines() + OFTEN * 200, 900, ["<|endoftext|>"]).model.save(str(folder))
    said = {"bos_token": "[CLS]", "eos_token": "</s>", "unk_token": "<|endoftext|>"}
    said |= {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 2048}
    (folder / "tokenizer_config.json").write_text(json.dumps(said), "utf-8")


def _qwen(folder: Path) -> None:
    """Bytes in base64, each with its rank."""
    from tokenizers import pre_tokenizers

    made = byte_level(lines() + OFTEN * 200, 900, [])
    plain = range(256)
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    written = {chr(b): b for b in printed}
    written |= {chr(256 + i): b for i, b in enumerate(b for b in plain if b not in printed)}
    assert set(written) == set(pre_tokenizers.ByteLevel.alphabet())
    order = sorted(made.get_vocab().items(), key=lambda pair: pair[1])
    rows = [base64.b64encode(bytes(written[c] for c in text)).decode() + f" {rank}" for text, rank in order]
    (folder / "qwen.tiktoken").write_text("\n".join(rows) + "\n", "utf-8")


def _baichuan2(folder: Path) -> None:
    """The tokens of the two speakers are 195 and 196."""
    symbols = [f"<reserved_{i - 86}>" if i >= 86 else f"<unused_{i}>" for i in range(200)]
    train(
        folder,
        "tokenizer.model",
        vocab_size=900,
        user_defined_symbols=symbols,
        **LLAMA,
        add_dummy_prefix=False,
    )
    said = {"tokenizer_class": "BaichuanTokenizer", "add_bos_token": False, "pad_token": {"content": "<unk>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(said), "utf-8")


def _glm(folder: Path) -> None:
    train(folder, "cog-pretrain.model", model_type="unigram", vocab_size=300, user_defined_symbols=["<n>"])


def _pangu(folder: Path) -> None:
    symbols = ["▃", "▂", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]
    train(folder, "vocab.model", model_type="unigram", vocab_size=300, user_defined_symbols=symbols)


def _chinese_llama(folder: Path) -> None:
    train(folder, "chinese_sp.model", model_type="unigram", vocab_size=600, byte_fallback=True)


MAKERS: dict[str, Callable[[Path], None]] = {
    "gpt2": _gpt2,
    "aquila_bpe": _aquila,
    "qwen": _qwen,
    "baichuan2": _baichuan2,
    "glm_chinese_sp": _glm,
    "pangu": _pangu,
    "chinese_llama_sp": _chinese_llama,
}
"""By the names of the folders of the real ones."""
