"""The chat as a second process fed by a pipe, and what a conversation keeps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from espalier.models import load
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling
from espalier.models.saved import save_model
from espalier.serve.session import Session, whole_characters
from tests import processes

TEXTS = ["你好，世界。今天天气很好。", "Hello world, how are you today?"] * 20
TINY = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 96}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tokenizer = load.train_tokenizer(TEXTS, 300)
    torch.manual_seed(1)
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    lm = load.new_lm(TINY, len(tokenizer), ids)
    save_model(made, TreeModel(lm, probe(lm)), tokenizer)
    return made


def session(folder: Path, limit: int = 60, room: int = 8) -> Session:
    lm = load.load_lm(str(folder))
    model = TreeModel(lm, probe(lm)).eval()
    return Session(model, load.load_tokenizer(str(folder)), Sampling(room, 0.0), limit)


@pytest.mark.slow
def test_a_piped_conversation_is_answered_and_ends(folder: Path) -> None:
    command = [sys.executable, "-m", "espalier.cli", "chat", str(folder), "--max-new-tokens", "6"]
    lines = "你好\n/system Be brief.\n/clear\nHello\n/exit\nnever read\n"
    done = processes.run(command, input=lines, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "forgotten" in done.stdout and "Be brief." in done.stdout


def test_the_streamed_pieces_are_the_answer(folder: Path) -> None:
    talk = session(folder)
    said = "".join(talk.ask("你好"))
    assert [m.role for m in talk.messages] == ["user", "assistant"]
    assert said == whole_characters(talk.messages[-1].content)


def test_the_oldest_exchange_goes_first_and_is_counted(folder: Path) -> None:
    talk = session(folder, limit=60, room=4)
    for turn in range(6):
        list(talk.ask(f"Hello world {turn}"))
    assert talk.forgotten > 0
    assert talk.messages[-2].content == "Hello world 5"
    talk.messages.pop()  # what the last answer was given to
    assert len(talk._encoded()) <= 60


def test_half_a_character_is_not_shown() -> None:
    half = "世界".encode()[:4].decode("utf-8", errors="replace")
    assert whole_characters(half) == "世"


@pytest.mark.slow
def test_a_question_longer_than_the_model_is_cut_and_said(folder: Path) -> None:
    talk = session(folder, limit=20, room=4)
    list(talk.ask("Hello world " * 30))
    assert talk.cut == len(talk._encoded()) - 20 - answered(talk) > 0
    command = [sys.executable, "-m", "espalier.cli", "chat", str(folder), "--max-new-tokens", "5000"]
    done = processes.run(command, input="Hello " * 3000 + "\n/exit\n", capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "the model's context is" in done.stdout
    assert "were left out" in done.stdout


def answered(talk: Session) -> int:
    """Tokens that the answer has added to the conversation."""
    asked = Session(talk.model, talk.tokenizer, talk.sampling, talk.limit, messages=talk.messages[:-1])
    return len(talk._encoded()) - len(asked._encoded())
