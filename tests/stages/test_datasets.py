"""The data half of a setup: parts that share nothing, stores that are found again, samples that come from the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier import config
from espalier.config.options import COMMON, TurnOptions
from espalier.data.encode.templates import choose_template
from espalier.data.preflight.findings import HELD_OUT
from espalier.errors import UserError
from espalier.stages.datasets import Datasets
from tests.data.store.helpers import CHATS, LABELLED, PAIRS, RANKS, said, tokenizer_of, write
from tests.stages.conftest import run

TOKENIZER = tokenizer_of()


def datasets(path: str | list[str], kept: Path | None = None, **options: Any) -> Datasets:
    raw = {
        "model_config": {"model_type": "llama"},
        "stage": "sft",
        "dataset": path,
        "cutoff_len": 512,
        **options,
    }
    made = Datasets(
        config.build(raw, COMMON, all_classes={"sft": COMMON}),
        reads="chat",
        rank=0,
        world=1,
        device=torch.device("cpu"),
        say=print,
        tokenizer=TOKENIZER,
        kept=kept,
    )
    made.template = choose_template(TOKENIZER)
    return made


@pytest.mark.parametrize("mix", [{}, {"mix_strategy": "all", "interleave_probs": [1, 2]}])
def test_held_out_and_training_share_no_prompt_and_lose_nothing(mix: dict[str, Any], tmp_path: Path) -> None:
    rows = [{**CHATS[i % 30], "output": f"{i}"} for i in range(200)]  # prompts that stand there several times
    paths = [write(tmp_path / "a.jsonl", rows[:120]), write(tmp_path / "b.jsonl", rows[120:])]
    data = datasets(paths, tmp_path / "kept", val_size=0.2, **mix)
    train, held_out = data.records("chat")
    trees, judged = data.trees(train), data.trees(held_out, HELD_OUT)
    whole = datasets(paths, tmp_path / "kept", **mix)
    every = [tree.source for tree in whole.trees(whole.records("chat")[0])]
    assert sorted([tree.source for tree in (*trees, *judged)]) == sorted(every)
    assert 0 < len(judged) <= 0.2 * len(every)
    prompts = [{tuple(tree.tokens[~tree.trained][:12].tolist()) for tree in part} for part in (trees, judged)]
    assert not prompts[0] & prompts[1]
    other = datasets(paths, tmp_path / "kept", val_size=0.2, seed=5, **mix)
    assert [t.source for t in other.trees(other.records("chat")[1], HELD_OUT)] != [t.source for t in judged]
    findings = [finding.what for finding in data.preflight.report().findings]
    assert not any("trained on" in what for what in findings)


def test_samples_are_the_first_held_out_prompts(tmp_path: Path) -> None:
    data = datasets(write(tmp_path / "a.jsonl", CHATS), val_size=10, samples=3)
    _, held_out = data.records("chat")
    judged = data.trees(held_out, HELD_OUT)
    samples = data.sample_prompts(held_out)
    lines = [int(tree.source.rpartition(":")[2]) for tree in judged]
    assert [sample.text for sample in samples] == [CHATS[line - 1]["instruction"] for line in lines[:3]]
    for sample, tree in zip(samples, judged, strict=False):
        assert sample.tokens == tree.tokens[: tree.trained.argmax()].tolist()


def test_a_ranking_among_pairs_is_named(tmp_path: Path) -> None:
    data = datasets(write(tmp_path / "a.jsonl", [*PAIRS, *RANKS]))
    records, _ = data.records("preference")
    data.trees(records)
    with pytest.raises(UserError, match=rf"a\.jsonl:{len(PAIRS) + 1}: 3 ranked answers"):
        data.only_pairs(records)


def test_labelled_answers_pass(tmp_path: Path) -> None:
    data = datasets(write(tmp_path / "a.jsonl", LABELLED))
    forest = data.trees(data.records("unpaired")[0])
    assert [tree.extras["desirable"].tolist() for tree in forest] == [[float(r["label"])] for r in LABELLED]


def test_texts_for_a_tokenizer_are_those_of_the_training_part(tmp_path: Path) -> None:
    data = datasets(write(tmp_path / "a.jsonl", CHATS), val_size=10)
    train, _ = data.records("chat")
    texts = list(data.texts())
    assert len(texts) == len(train) == 50
    assert set(texts) < {f"{row['instruction']}\n{row['output']}" for row in CHATS}


def test_nothing_is_kept_where_no_folder_is_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", CHATS)
    data = datasets(path)
    assert data.kept is not None and data.kept.is_dir() and tmp_path not in data.kept.parents
    first = [said(tree) for tree in data.trees(data.records("chat")[0])]
    again = datasets(path, tokenized_path=str(tmp_path / "mine"))
    assert [said(tree) for tree in again.trees(again.records("chat")[0])] == first
    assert any((tmp_path / "mine").iterdir())


@pytest.mark.slow
def test_a_second_run_tokenises_nothing(
    options: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(options("sft", tokenized_path=str(tmp_path / "mine"), max_steps=1))

    def never(*args: Any, **how: Any) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr("espalier.data.store.open.build", never)
    changes = {"learning_rate": 2e-3, "seed": 7, "output_dir": str(tmp_path / "other"), "max_steps": 2}
    summary = run(options("sft", tokenized_path=str(tmp_path / "mine"), **changes))
    assert summary["status"] == "done" and summary["preflight"]["parts"]["train"]["records"] == 48
    with pytest.raises(AssertionError, match="tokenised again"):
        run(options("sft", tokenized_path=str(tmp_path / "mine"), cutoff_len=100, **changes, name="b"))


@pytest.mark.slow
def test_steps_of_tokens_stop_and_go_on(options: Callable[..., dict[str, Any]]) -> None:
    from tests.stages.conftest import far, weights
    from tests.stages.test_coincide import _stopped

    tokens = {"tokens_per_step": 200, "per_device_train_batch_size": None, "max_steps": 8}
    whole = options("sft", name="whole", **tokens)
    run(whole)
    broken = options("sft", name="broken", save_steps=1, save_total_limit=None, **tokens)
    _stopped(broken, 3)
    run(broken)
    assert far(weights(whole), weights(broken)) == 0.0


def test_which_turns_of_a_chat_are_learned_follows_the_options(tmp_path: Path) -> None:
    turns = [
        {"role": role, "content": text}
        for role, text in [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    ]
    path = write(tmp_path / "a.jsonl", [{"messages": turns}])

    def learned(**options: Any) -> str:
        raw = {"model_config": {"model_type": "llama"}, "stage": "sft", "dataset": path, **options}
        data = datasets(path, tmp_path / "kept")
        data.options = config.build(raw, (*COMMON, TurnOptions), all_classes={"sft": COMMON})
        [tree] = data.trees(data.records("chat")[0])
        [(tokens, flags)] = tree.paths()
        return str(TOKENIZER.decode(tokens[flags]))

    every, last, whole = learned(), learned(mask_history=True), learned(train_on_prompt=True)
    assert every.count(TOKENIZER.eos_token) == 2 and last.count(TOKENIZER.eos_token) == 1
    assert "a" in every and "a" not in last.removesuffix(TOKENIZER.eos_token) and "b" in last
    assert "q" in whole and "q" not in every and whole.endswith(last)
    with pytest.raises(UserError, match="`mask_history` reads what stands before an answer"):
        learned(mask_history=True, train_on_prompt=True)
