"""Reward models that read text: another tokenizer, encoders, and position tables that end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from espalier import config
from espalier.errors import UserError
from espalier.models import load
from espalier.models.classifier import is_encoder
from espalier.models.positions.table import table_length
from espalier.models.saved import read_scalar_head
from espalier.rollout.experience import AnswerGroup
from espalier.rollout.rewards.table import read_specs
from espalier.runs.catalogue import CLASSES
from espalier.stages.reward_models import RewardModel, load_reward_model
from espalier.stages.setup import Setup
from espalier.trees import Tree
from tests.stages.conftest import rows, run

Make = Callable[..., dict[str, Any]]
TEXTS = ["12.", "no idea at all", "7"]
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture
def setup(options: Make) -> Setup:
    chosen = config.build(config.RawConfig(options("ppo")), CLASSES["ppo"], all_classes=CLASSES)
    return Setup(chosen, "prompt", 0, 1, torch.device("cpu"), list[str]().append)


def groups(setup: Setup, texts: list[str] = TEXTS) -> list[AnswerGroup]:
    """Answers to each of three prompts; the last one was cut."""
    made = []
    for ask in setup.asks(setup.records("prompt")[0], 100)[:3]:
        paths = []
        for text in texts:
            end = [] if text == texts[-1] else list(setup.stop[:1])
            answer = setup.tokenizer.encode(text, add_special_tokens=False) + end
            paths.append((ask.tokens + answer, [False] * len(ask.tokens) + [True] * len(answer)))
        made.append(
            AnswerGroup(ask, Tree.join(paths, source=ask.source), texts, [True] * (len(texts) - 1) + [False])
        )
    return made


def loaded(setup: Setup, path: Path, **settings: Any) -> RewardModel:
    (spec,), problems = read_specs([{"type": "model", "path": str(path), **settings}])
    assert problems == []
    return load_reward_model(setup, spec)


def scores(model: RewardModel, answered: list[AnswerGroup]) -> torch.Tensor:
    live: Any = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    found = torch.stack(model.scores(live, answered))
    assert found.shape == (3, 3) and len(found.unique()) > 6, "scores that are all alike prove nothing"
    return found


def other_words(world: Path, folder: Path) -> Path:
    """The judge with a tokenizer that makes other pieces."""
    shutil.copytree(world / "judge", folder)
    texts = [json.loads(line)["text"] for line in (world / "pretrain.jsonl").read_text("utf-8").splitlines()]
    load.train_tokenizer([text[::-1] for text in texts], 400).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("place", ["answer", "turn"])
def test_read_as_text_by_the_same_tokenizer_is_read_as_ids(setup: Setup, world: Path, place: str) -> None:
    answered = groups(setup)
    ids = scores(loaded(setup, world / "judge", score_at=place), answered)
    text = scores(loaded(setup, world / "judge", score_at=place, retokenize=True), answered)
    torch.testing.assert_close(ids, text, rtol=0, atol=1e-5)


def test_another_tokenizer_reads_its_own_ids(setup: Setup, world: Path, tmp_path: Path) -> None:
    other = other_words(world, tmp_path / "other")
    with pytest.raises(UserError, match=r"has another tokenizer .* Or set reward_retokenize: true"):
        loaded(setup, other)
    answered = groups(setup)
    found = scores(loaded(setup, other, retokenize=True, score_at="answer"), answered)
    tokenizer, lm, head = (
        load.load_tokenizer(str(other)),
        load.load_lm(str(other)),
        read_scalar_head(str(other)),
    )
    assert head is not None
    for group, row in zip(answered, found, strict=True):
        for text, ended, score in zip(group.texts, group.ended, row, strict=True):
            # By hand: the simple template's text, whole, in the other tokenizer's ids.
            end = tokenizer.eos_token if ended else ""
            written = setup.tokenizer.decode(group.ask.tokens) + text + end
            ids = tokenizer.encode(written, add_special_tokens=False)
            assert ids != setup.tokenizer.encode(written, add_special_tokens=False)
            with torch.no_grad():
                hidden = lm(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
                torch.testing.assert_close(score, head(hidden[None])[0], rtol=0, atol=1e-5)


def encoder(
    world: Path, folder: Path, positions: int = 128, labels: int = 1, template: str | None = None
) -> Path:
    tokenizer = load.load_tokenizer(str(world / "base"))
    tokenizer.chat_template = template
    torch.manual_seed(5)
    made = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, num_labels=labels,
                      pad_token_id=tokenizer.pad_token_id, initializer_range=0.3, **SMALL)  # fmt: skip
    BertForSequenceClassification(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"]
)
def test_an_encoder_reads_padded_rows_of_its_own_tokenizer(
    template: str | None, setup: Setup, world: Path, tmp_path: Path
) -> None:
    folder = encoder(world, tmp_path / "bert", template=template)
    BartConfig(vocab_size=50, d_model=32).save_pretrained(tmp_path / "bart")
    assert not is_encoder(str(tmp_path / "bart")), "it writes, too, and may be a reward model of a run"
    assert is_encoder(str(folder)) and not is_encoder(str(world / "judge")) and not is_encoder("no/where")
    answered = groups(setup)
    found = scores(loaded(setup, folder), answered)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        load.load_tokenizer(str(folder)),
    )
    for group, row in zip(answered, found, strict=True):
        assert len({len(tokenizer(group.ask.text, text).input_ids) for text in group.texts}) > 1, (
            "nothing is padded"
        )
        for text, score in zip(group.texts, row, strict=True):
            whole = f"user: {group.ask.text};assistant: {text};"
            ids = tokenizer(*((group.ask.text, text) if template is None else (whole,)), return_tensors="pt")
            with torch.no_grad():
                torch.testing.assert_close(score, model.eval()(**ids).logits[0, 0], rtol=0, atol=1e-5)


def test_a_classifier_of_several_labels_is_refused(setup: Setup, world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a classifier with 3 labels; wanted one label"):
        loaded(setup, encoder(world, tmp_path / "bert", labels=3))


def test_how_many_positions_a_table_has() -> None:
    roberta = RobertaConfig(vocab_size=50, max_position_embeddings=42, pad_token_id=1, **SMALL)
    opt = OPTConfig(vocab_size=50, max_position_embeddings=40, ffn_dim=48, word_embed_proj_dim=32, **SMALL)
    gpt = GPT2Config(vocab_size=50, n_positions=40, n_embd=32, n_layer=2, n_head=4)
    for model, length in (
        (RobertaForSequenceClassification(roberta), 40),
        (OPTForCausalLM(opt), 40),
        (GPT2ForSequenceClassification(gpt), 40),
        (LlamaForCausalLM(LlamaConfig(vocab_size=50, **SMALL)), None),
    ):
        assert table_length(model) == length, type(model)
    ids = torch.full((1, 41), 5)
    for broken in (RobertaForSequenceClassification(roberta), OPTForCausalLM(opt)):
        broken(ids[:, :40])
        with pytest.raises((IndexError, RuntimeError)):
            broken(ids)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_row_behind_the_last_position_is_refused_by_name(
    kind: str, setup: Setup, world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / kind
    if kind == "bert":
        encoder(world, folder, positions=64)
    else:
        made = GPT2Config(vocab_size=len(setup.tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4,
                          num_labels=1, pad_token_id=setup.tokenizer.pad_token_id)  # fmt: skip
        GPT2ForSequenceClassification(made).save_pretrained(folder)
        setup.tokenizer.save_pretrained(folder)
    with pytest.raises(
        UserError,
        match=rf"prompts.jsonl:\d+: prompt and answer are \d+ tokens for the reward model .*{kind}, and its position table has 64",
    ):
        scores(loaded(setup, folder), groups(setup, [*TEXTS[:2], "again and " * 20]))


@pytest.mark.slow
def test_runs_with_models_that_read_text(options: Make, world: Path, tmp_path: Path) -> None:
    other, bert = other_words(world, tmp_path / "other"), encoder(world, tmp_path / "bert")
    chosen = options("grpo", max_steps=1, reward_model=str(other), reward_retokenize=True)
    chosen.pop("reward_function")
    assert run(chosen)["status"] == "done" and "eval_reward/other" in rows(chosen)[-1]
    chosen = options(
        "ppo",
        max_steps=1,
        rewards=[
            {"type": "model", "path": str(bert)},
            {"type": "model", "path": str(other), "retokenize": True},
        ],
    )
    chosen.pop("reward_model")
    summary = run(chosen)
    assert {"eval_reward/bert", "eval_reward/other"} <= set(rows(chosen)[-1])
    assert any("the critic starts from the policy" in note for note in summary["notes"])
    assert any("an encoder; it reads prompt and answer as text" in note for note in summary["notes"])
