"""Models that find their prompt's end by marks (T5, BART, GLM, ChatGLM-6B) in every stage, in exams and in chat."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, BertTokenizerFast, T5Config

import espalier
from espalier.errors import UserError
from espalier.models.saved import read_scalar_head
from tests.families.chain import SAID, examined, from_sft_to_chat, losses, options, run, write_lines
from tests.models.legacy.test_chain import CONFIGS, untrained
from tests.models.legacy.tokenizers.test_made_vocabularies import train

TEXT = "".join("".join(line) for line in SAID) + "abcdefghijklmnopqrstuvwxyz"


def t5(folder: Path) -> Path:
    """With its own kind of vocabulary: a unigram sentencepiece model, here one of characters."""
    made = folder / "t5"
    made.mkdir()
    lines = ["".join(line) for line in SAID] * 50 + [" ".join(TEXT)] * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(made / "spiece"), vocab_size=110, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = AutoModelForSeq2SeqLM.from_config(T5Config(vocab_size=256, decoder_start_token_id=0, **sizes))
    model.save_pretrained(made)
    return made


def bart(folder: Path) -> Path:
    """As Chinese BARTs are: characters in a BERT vocabulary."""
    made = folder / "bart"
    made.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({c for c in TEXT if c.strip()})]
    words += [f"##{c}" for c in sorted(set("abcdefghijklmnopqrstuvwxyz"))]
    (made / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    BertTokenizerFast(str(made / "vocab.txt")).save_pretrained(str(made))
    torch.manual_seed(0)
    sizes = {"d_model": 16, "max_position_embeddings": 128}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 2, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 32}
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    ids |= {"decoder_start_token_id": 3, "forced_eos_token_id": None}
    AutoModelForSeq2SeqLM.from_config(BartConfig(vocab_size=len(words), **sizes, **ids)).save_pretrained(made)
    return made


def chatglm(folder: Path) -> Path:
    symbols = ["<n>", "<|tab|>", *(f"<|blank_{k}|>" for k in range(2, 81))]
    symbols += ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>"]
    pieces = train(
        folder / "old",
        "ice_text.model",
        vocab_size=800,
        user_defined_symbols=symbols,
        byte_fallback=True,
        pad_id=3,
    )
    config = {"model_type": "chatglm", "vocab_size": 800, "hidden_size": 16, "inner_hidden_size": 32}
    config |= {"num_layers": 2, "num_attention_heads": 2, "max_sequence_length": 128, "pad_token_id": 3}
    names = {"bos": "<sop>", "eos": "<eop>", "mask": "[MASK]", "gmask": "[gMASK]"}
    config |= {f"{name}_token_id": pieces.piece_to_id(text) for name, text in names.items()}
    return untrained(config, folder)


def glm(folder: Path, shared: Path) -> Path:
    """With its real vocabulary; its padding is the token that closes a prompt."""
    made = untrained(CONFIGS["glm"][1], folder)
    shutil.copy(shared / "data" / "tokenizers" / "glm_chinese_sp" / "cog-pretrain.model", made)
    return made


MODELS = {"t5": t5, "bart": bart, "chatglm": chatglm}


@pytest.fixture(params=[*MODELS, "glm"])
def marked(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny model's folder."""
    if request.param == "glm":
        return glm(tmp_path, request.getfixturevalue("shared"))
    return MODELS[request.param](tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_from_sft_to_chat(name: str, tmp_path: Path) -> None:
    from_sft_to_chat(MODELS[name](tmp_path), tmp_path)


@pytest.mark.slow
def test_every_stage(marked: Path, tmp_path: Path) -> None:
    """Full weights: sft, a reward model, dpo, ppo with that reward model, grpo."""
    learned = run(options("sft", marked, tmp_path))
    judge = run(options("reward", learned, tmp_path, max_steps=30))
    assert read_scalar_head(str(judge)) is not None
    summary = json.loads((tmp_path / "run" / "reward" / "summary.json").read_text("utf-8"))
    assert summary["final"]["accuracy"] > 0.7, "four pairs are learned by heart"
    compared = options("dpo", learned, tmp_path, max_steps=1)
    run(compared)
    assert losses(compared) == pytest.approx([math.log(2)], abs=1e-5)
    sampled = {"max_prompt_length": 32, "max_new_tokens": 5, "group_size": 3}
    run(options("ppo", learned, tmp_path, reward_model=str(judge), **sampled))
    run(options("grpo", learned, tmp_path, reward_function="brevity", **sampled))


@pytest.mark.slow
def test_what_is_scored_is_the_answer_after_the_whole_prompt(marked: Path, tmp_path: Path) -> None:
    """`score`, an exam and the model itself, asked by hand, say the same."""
    lm, tokenizer = espalier.load_model(str(marked), device="cpu")
    (question, right, wrong), choices = SAID[0], [SAID[0][1], SAID[0][2]]
    scores = [s for s, _ in espalier.score(lm, tokenizer, question, choices)]
    assert scores == pytest.approx([by_hand(lm, tokenizer, question, c) for c in (right, wrong)], abs=2e-4)
    examined(marked, tmp_path)
    line = json.loads((tmp_path / "exam" / "choose.jsonl").read_text("utf-8").splitlines()[0])
    assert line["scores"] == pytest.approx(scores, abs=1e-5)
    (((said,),)) = espalier.generate(lm, tokenizer, [question], max_new_tokens=5, temperature=0)
    again = by_hand(lm, tokenizer, question, None, n=len(said.tokens))
    assert said.tokens == again


@torch.no_grad()
def by_hand(lm: Any, tokenizer: Any, question: str, answer: str | None, n: int = 0) -> Any:
    """Nothing of ours but the architecture: the answer's logprob, or the n likeliest tokens one by one."""
    chat = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(asked, add_special_tokens=False).input_ids
    whole = prompt if answer is None else tokenizer(asked + answer, add_special_tokens=False).input_ids
    total = 0.0
    for at in range(len(prompt), len(whole) if answer is not None else len(prompt) + n):
        if lm.config.is_encoder_decoder:
            size = max(i for i in range(1, len(prompt)) if prompt[i - 1] == lm.config.eos_token_id)
            size -= int(prompt[size - 2 : size] == [lm.config.eos_token_id] * 2)
            out = lm(input_ids=torch.tensor([whole[:size]]), decoder_input_ids=torch.tensor([whole[size:at]]))
        else:
            out = lm(input_ids=torch.tensor([whole[:at]]))
        said = out.logits[0, -1].log_softmax(-1)
        if answer is None:
            whole = [*whole, int(said.argmax())]
        else:
            total += float(said[whole[at]])
    return whole[len(prompt) :] if answer is None else total


def test_a_text_without_an_answer_is_refused(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "text.jsonl", [{"text": "一段没有问答的文字。"}])
    with pytest.raises(UserError, match="questions with answers"):
        run(options("sft", t5(tmp_path), tmp_path) | {"stage": "pretrain", "dataset": [str(data)]})
