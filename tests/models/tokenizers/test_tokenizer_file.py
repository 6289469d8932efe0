"""What is loaded encodes as its tokenizer.json says: every architecture, kind of vocabulary, and way of saving."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from espalier.errors import Notice
from espalier.models.load import load_tokenizer, train_tokenizer
from espalier.models.tokenizers.tokenizer_file import TEXTS, first_difference

LINES = [*TEXTS, "the quick brown fox 12 345", "床前明月光，疑是地上霜", "don't  stop\n\nnow"] * 3
# Not the module's own texts: a difference that those do not see would be seen here.
UNSEEN = (
    "James decides to run 3 sprints 3 times a week. He runs 60 meters each sprint.",
    "小明有 12 个苹果，吃了3个，还剩多少？\n\t答：９个。 ",
    "   x = {'a': 1};  // 100%\r\n\r\n",
    "Ｆｕｌｌ　ｗｉｄｔｈ é e\u0301 ﬀ 𝔘 🙂🙂  end",
    "<|im_start|>user\nhi 2026<|im_end|>\n",
)
KINDS = sorted(
    {
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    - {"gemma4_assistant"}  # its configuration does not stand without a second model's
)
PLAIN = (None, "TokenizersBackend", "PreTrainedTokenizerFast")


def byte_level() -> PreTrainedTokenizerFast:
    made = train_tokenizer(LINES, 420)
    made.model_max_length = 77
    return made


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Unigram over words that begin with ▁, texts between <s> and </s>, a mark that eats spaces."""
    letters = sorted({c for line in (*LINES, *UNSEEN) for c in line if c != " "})
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁the", -3.0), ("12", -3.0)]
    made = Tokenizer(models.Unigram([*pieces, *((c, -5.0) for c in letters)], unk_id=0))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<unk>", "<s>", "</s>", AddedToken("<mask>", lstrip=True, special=True)])
    ends = [("<s>", 1), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        pad_token="</s>",
    )


def words() -> PreTrainedTokenizerFast:
    """Lower-cased words and digits one by one: as unlike the tokenizers of today as it gets."""
    made = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "the": 2, "fox": 3, "1": 4, "2": 5}, "<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )


VOCABULARIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "sentencepiece_like": sentencepiece_like,
    "words": words,
}


def written(tokenizer: Any, folder: Path, kind: str | None, **settings: Any) -> Path:
    """A folder with a tokenizer and the configuration of an architecture; keys of its settings replaced."""
    tokenizer.save_pretrained(str(folder))
    if kind is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}), "utf-8")
    file = folder / "tokenizer_config.json"
    said = {**json.loads(file.read_text("utf-8")), **settings}
    file.write_text(json.dumps({k: v for k, v in said.items() if v is not None}), "utf-8")
    return folder


def loaded(folder: Path) -> PreTrainedTokenizerBase:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        return load_tokenizer(str(folder))


def check_ids(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    truth = Tokenizer.from_file(str(file / "tokenizer.json"))
    for text in (*TEXTS, *UNSEEN):
        for add in (False, True):
            expected = truth.encode(text, add_special_tokens=add).ids
            assert tokenizer(text, add_special_tokens=add)["input_ids"] == expected, (text, add)
    ids = truth.encode(UNSEEN[0], add_special_tokens=False).ids
    assert tokenizer.backend_tokenizer.decode(ids) == truth.decode(ids)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_architecture_encodes_as_written_and_saved_and_loaded_again(
    tmp_path: Path, vocabulary: str
) -> None:
    made = VOCABULARIES[vocabulary]()
    assert {"qwen2", "t5"} < set(KINDS) and len(KINDS) > 150
    # An architecture without a tokenizer class of its own is as any other such: one vocabulary is enough there.
    kinds = [k for k in KINDS if vocabulary == "byte_level" or TOKENIZER_MAPPING_NAMES.get(k) not in PLAIN]
    first, wrong = written(made, tmp_path / "first", None), []
    for kind in [None, *kinds]:
        if kind is not None:
            (first / "config.json").write_text(json.dumps({"model_type": kind}), "utf-8")
        try:
            one = loaded(first)
            check_ids(one, first)
            if type(one).__name__ in PLAIN and kind not in (None, "qwen2", "t5"):
                continue  # saved it is what it was
            second = written(
                one, tmp_path / "again" / f"{kind}", kind
            )  # as a stage writes it beside its model
            again = loaded(second)
            check_ids(again, first)
            assert again.special_tokens_map == one.special_tokens_map
        except Exception as error:
            wrong.append(f"{kind}: {error!r}"[:300])
    assert not wrong, "\n".join(wrong)


CLASSES = [
    *("PreTrainedTokenizerFast", "TokenizersBackend", "GPT2Tokenizer", "GPT2TokenizerFast", "Qwen2Tokenizer"),
    *("Qwen2TokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "T5Tokenizer"),
    *("BloomTokenizerFast", "CodeGenTokenizer", "GPTNeoXTokenizer", "CohereTokenizer", "BertTokenizer"),
    *("NoSuchTokenizer", None),
]


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", ["byte_level", "sentencepiece_like"])
def test_whatever_class_the_settings_name(tmp_path: Path, vocabulary: str) -> None:
    made = VOCABULARIES[vocabulary]()
    for name in CLASSES:
        for kind in (None, "qwen2", "qwen3", "llama", "gpt2", "t5"):
            folder = written(made, tmp_path / f"{name}-{kind}", kind, tokenizer_class=name)
            check_ids(loaded(folder), folder)


def test_what_the_settings_say_is_kept_and_the_change_is_said(tmp_path: Path) -> None:
    made = byte_level()
    made.add_tokens(["<new>"])
    folder = written(made, tmp_path / "qwen", "qwen2", padding_side="left")
    with pytest.warns(Notice, match=r"Qwen2Tokenizer.*tokenizer\.json; the file is followed") as said:
        again = load_tokenizer(str(folder))
    assert len(said) == 1
    assert again.chat_template == made.chat_template
    assert (again.padding_side, again.model_max_length) == ("left", 77)
    assert (again.eos_token_id, again.pad_token_id) == (made.eos_token_id, made.pad_token_id)
    assert again("a<new>b", add_special_tokens=False) == made("a<new>b", add_special_tokens=False)
    assert len(again) == len(made)


def test_nothing_is_said_where_nothing_differs(tmp_path: Path) -> None:
    folder = written(byte_level(), tmp_path / "llama", "llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tokenizer(str(folder))


def test_a_class_that_refuses_the_folder_is_not_needed(tmp_path: Path) -> None:
    folder = written(
        byte_level(), tmp_path / "gemma", None, tokenizer_class="GemmaTokenizer"
    )  # wants an <unk>
    with pytest.warns(Notice, match=r"tokenizer\.json; the file is followed"):
        check_ids(load_tokenizer(str(folder)), folder)


def test_the_comparison_sees_a_difference() -> None:
    one = byte_level()
    other = Tokenizer.from_str(one.backend_tokenizer.to_str())
    assert first_difference(one, other) is None
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), other.pre_tokenizer]
    )
    assert first_difference(one, other) is not None
    other = Tokenizer.from_str(one.backend_tokenizer.to_str())
    other.normalizer = normalizers.NFC()
    assert first_difference(one, other) is not None


def test_a_class_that_cannot_be_made_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that comes with a tokenizer is not run, and is not needed where tokenizer.json says all."""
    settings = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    folder = written(byte_level(), tmp_path / "own", None, **settings)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", "utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question is asked"))
    with pytest.warns(Notice, match=r"refuses it .*made of tokenizer\.json alone"):
        check_ids(load_tokenizer(str(folder)), folder)
    assert not (tmp_path / "ran").exists()
