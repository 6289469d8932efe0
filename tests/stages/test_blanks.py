"""Pretraining of GLM and ChatGLM-6B by filling blanks, as a run: what is said, learned, refused, and the same again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier import config
from espalier.commands.inspect.config import show_config
from espalier.errors import UserError
from espalier.models.load import load_lm, load_tokenizer
from espalier.runs.catalogue import STAGES
from espalier.runs.pipeline import ALL_CLASSES
from espalier.stages.blanks import blank_filling
from espalier.stages.setup import Setup
from espalier.trees.tree import BLANK
from tests.families.test_marked import chatglm, glm
from tests.stages.conftest import far, finish, rows, run, start, weights
from tests.stages.test_coincide import _stopped as stopped

TEXTS = [
    "天空是蓝色的。草是绿色的！你好呀，say hello there。",
    "一加一等于二。二加二等于四。",
    "hello 你好。" * 12,
]
SHARES = {"pretraining_objective": "blank_filling", "blank_filling_shares": [1, 1, 1]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ChatGLM-6B with two small blocks and a vocabulary of its own kind."""
    return chatglm(tmp_path_factory.mktemp("chatglm"))


def asked(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS), "utf-8")
    made = {"stage": "pretrain", "model_name_or_path": str(model), "dataset": [str(data)], "cutoff_len": 64}
    made |= {"output_dir": str(folder / "run"), "max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1}
    made |= {"per_device_train_batch_size": 8, "precision": "fp32", "save_steps": 0}
    return made | changes


def setup_of(options: dict[str, Any]) -> Setup:
    built = config.build(config.RawConfig(options), ALL_CLASSES["pretrain"], all_classes=ALL_CLASSES)
    return Setup(built, reads="text", rank=0, world=1, device=torch.device("cpu"), say=lambda line: None)


def said(options: dict[str, Any]) -> str:
    folder = Path(options["output_dir"]) / "pretrain"
    return (folder / "summary.json").read_text("utf-8")


def test_a_run_fills_blanks(tiny: Path, tmp_path: Path) -> None:
    options = asked(tiny, tmp_path, **SHARES | {"blank_filling_shares": [1, 0, 1]}, eval_dataset=[])
    run(options)
    losses = [row["loss"] for row in rows(options) if "loss" in row]
    assert losses[-1] < losses[0] and all(map(np.isfinite, losses))
    assert "blanks are filled: 50% short spans, 0% sentences, 50% documents' ends" in said(options)


def test_a_causal_run_says_so(tiny: Path, tmp_path: Path) -> None:
    options = asked(tiny, tmp_path, max_steps=1)
    run(options)
    assert "learns the next token here" in said(options)


def test_glm_with_its_own_vocabulary(shared: Path, tmp_path: Path) -> None:
    """Each text is there once, its end token too, by the ids that its tokenizer gives."""
    setup = setup_of(asked(glm(tmp_path, shared), tmp_path, **SHARES))
    trees = setup.trees(setup.records("text")[0], blanks=blank_filling(setup))
    tokenizer = load_tokenizer(str(tmp_path / "old"))
    ids = [t for text in TEXTS for t in [*tokenizer.encode(text, add_special_tokens=False), 50000]]
    marks, found = {50002, 50003, 50006, 50007, 50008, 50009}, []
    for tree in trees:
        ((row, trained),) = tree.paths()
        assert row[0] == 50002 and tree.extras[BLANK].shape == (1, trained.sum())
        found += [int(t) for t in row if t not in marks]
        blanks = np.isin(row, [50003, 50008, 50009])
        assert set(tree.extras[BLANK][0].tolist()) == set(np.flatnonzero(blanks).tolist())
        assert blanks.sum() == (row == 50006).sum() == (row == 50007).sum()
    assert sorted(found) == sorted(ids)


def test_the_blanks_are_the_same_at_a_continuation(tiny: Path, tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        (tmp_path / str(len(drawn))).mkdir()
        options = asked(
            tiny, tmp_path / str(len(drawn)), **SHARES | {"blank_filling_shares": [1, 0, 1]}, seed=seed
        )
        setup = setup_of(options)
        trees = setup.trees(setup.records("text")[0], blanks=blank_filling(setup))
        drawn.append([(tree.tokens.tolist(), tree.extras[BLANK].tolist()) for tree in trees])
    assert drawn[0] == drawn[1] != drawn[2]


def many(folder: Path) -> list[str]:
    """Sixteen texts of their own lengths, in a file."""
    texts = [f"{text[: 8 + 3 * at]} 第{at}句。" for at in range(8) for text in TEXTS[:2]]
    data = folder / "many.jsonl"
    data.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return [str(data)]


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tiny: Path, tmp_path: Path) -> None:
    changes = SHARES | {"blank_filling_shares": [1, 0, 1], "dataset": many(tmp_path), "max_steps": 5}
    changes |= {"per_device_train_batch_size": 4, "eval_dataset": []}
    whole = asked(tiny, tmp_path, **changes, name="whole")
    run(whole)
    broken = asked(tiny, tmp_path, **{**changes, "save_steps": 1}, name="broken")
    stopped(broken, 2)
    summary = run(broken)
    assert summary["status"] == "done" and summary["steps"] == 5
    assert far(weights(whole), weights(broken)) == 0.0
    first = far(
        weights(whole),
        {key: t for key, t in load_lm(str(tiny)).state_dict().items() if key in weights(whole)},
    )
    assert first > 1e-3


@pytest.mark.slow
def test_two_processes_fill_the_blanks_of_one(tiny: Path, tmp_path: Path) -> None:
    changes = SHARES | {
        "blank_filling_shares": [1, 0, 1],
        "dataset": many(tmp_path),
        "max_steps": 3,
        "samples": 0,
    }
    one = asked(tiny, tmp_path, **changes, per_device_train_batch_size=8, name="one", eval_dataset=[])
    two = asked(tiny, tmp_path, **changes, per_device_train_batch_size=4, name="two", eval_dataset=[])
    run(one)
    finish(start(two | {"output_dir": str(tmp_path / "two")}, tmp_path, ranks=2))
    two["output_dir"] = str(tmp_path / "two")
    assert far(weights(one), weights(two)) < 1e-5
    first, second = ([row["loss"] for row in rows(made) if "loss" in row] for made in (one, two))
    assert first == pytest.approx(second, abs=1e-4) and first[0] != pytest.approx(first[-1], abs=1e-2)


def test_inspect_shows_what_is_trained(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = asked(tiny, tmp_path, **SHARES | {"blank_filling_shares": [0, 0, 1]})
    file, page = tmp_path / "a.yaml", tmp_path / "a.html"
    file.write_text(json.dumps(options), "utf-8")
    show_config(file, 2, as_json=False, html=page)
    assert "[gMASK]" in page.read_text("utf-8")
    assert "blank_filling" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"blank_filling_shares": [1, 1, 1]}, "chatglm reads no blanks of sentences"),
        ({"blank_filling_shares": [1, 1]}, "wanted three numbers"),
        ({"blank_filling_shares": [0, 0, 0]}, "wanted three numbers"),
        ({"blank_filling_shares": [2, 0, -1]}, "blank_filling_shares"),
        ({"pretraining_objective": "causal"}, "belongs to pretraining_objective: blank_filling"),
        ({"finetuning_type": "prompt"}, "virtual tokens before a text"),
        ({"cutoff_len": 6}, "has no room for a text with a blank"),
        ({"pretraining_objective": "blanks"}, "blank_filling"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], told: str, tiny: Path, tmp_path: Path) -> None:
    options = asked(tiny, tmp_path, **SHARES | {"blank_filling_shares": [1, 0, 1]} | changes)
    with pytest.raises(UserError, match=told):
        run(options)


def test_models_without_blanks_are_refused_by_name(world: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"base does not read blanks\. They are for glm and chatglm"):
        run(asked(world / "base", tmp_path, **SHARES))
    with pytest.raises(UserError, match=r"the tokenizer has no <sop>, <eop>, \[MASK\]"):
        run(asked(tiny, tmp_path, tokenizer=str(world / "base"), pretraining_objective="blank_filling"))


def test_other_stages_have_no_such_key() -> None:
    assert [name for name, stage in STAGES.items() if stage.blanks is blank_filling] == ["pretrain"]
