"""KTO: answers beside the answers to other prompts, the KL of a whole step, and what is learned of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier import cli
from espalier.data.store.stack import listed
from espalier.errors import UserError
from espalier.stages import references
from espalier.stages.objectives.kto import Unpaired, with_strangers
from espalier.trees import Tree
from tests.stages.conftest import far, rows, run, weights
from tests.stages.test_step0 import bent

Make = Callable[..., dict[str, Any]]


def tree(prompt: list[int], answer: list[int], good: float) -> Tree:
    flags = [False] * len(prompt) + [True] * len(answer)
    return Tree.from_path(prompt + answer, flags, extras={"desirable": torch.tensor([good])})


def test_each_answer_stands_beside_one_to_another_prompt() -> None:
    prompts = [[1, 2], [1, 2], [3], [4, 5, 6], [1, 2]]
    plain = [tree(prompt, [10 + i, 20 + i, 30 + i], float(i % 2)) for i, prompt in enumerate(prompts)]
    both = with_strangers(listed(plain), cutoff_len=5, seed=0)
    partners = []
    for i, (made, one) in enumerate(zip(both, plain, strict=True)):
        (own, learned), (strange, also) = made.paths()
        assert own.tolist() == one.tokens.tolist() and learned.tolist() == one.trained.tolist()
        start = len(prompts[i])
        partner = int(strange[start]) - 10
        assert prompts[partner] != prompts[i] and strange[:start].tolist() == prompts[i]
        answer = [10 + partner, 20 + partner, 30 + partner]
        assert strange[start:].tolist() == answer[: 5 - start], "cut where a row ends"
        assert also.tolist() == [False] * start + [True] * len(answer[: 5 - start])
        assert made.extras["desirable"].tolist() == [float(i % 2)] * 2
        assert both.sizes(paths=False)[i] >= made.n_tokens or prompts[partner] == prompts[i]
        partners.append(partner)
    assert len(set(partners)) > 2
    alone = with_strangers(listed([plain[0], plain[1]]), cutoff_len=9, seed=0)
    with pytest.raises(UserError, match=r"no other record has another prompt.*records of two prompts"):
        alone[0]
    assert len(with_strangers(listed([]), 9, 0)) == 0


def test_a_first_step_with_rewards_is_refused() -> None:
    even = {"kl": 0.0, "desirable_reward": 0.01, "undesirable_reward": -0.01}
    objective = Unpaired(0.1, (1.0, 1.0), fresh=True)
    objective.check(even)
    objective.check({"kl": 0.0, "undesirable_reward": 0.0})
    for wrong in ({"kl": 0.5}, {"desirable_reward": -0.05}, {"undesirable_reward": 0.05}):
        with pytest.raises(ValueError, match="are not the same model at the start"):
            objective.check(even | wrong)
        Unpaired(0.1, (1.0, 1.0), fresh=False).check(even | wrong)


@pytest.mark.slow
def test_the_kl_is_that_of_the_whole_step(options: Make, tmp_path: Path) -> None:
    """However a step is divided: its KL, its loss and what is learned are the same."""
    made = []
    for name, division in (("whole", (8, 1)), ("parts", (2, 4))):
        size, parts = division
        chosen = options(
            "kto", per_device_train_batch_size=size, gradient_accumulation_steps=parts, learning_rate=0.02,
            output_dir=str(tmp_path / name), cutoff_len=64, desirable_weight=1.3, max_steps=5, samples=0,
        )  # fmt: skip
        run(chosen)
        made.append(([row for row in rows(chosen) if "loss" in row], weights(chosen), rows(chosen)))
    whole, parts = made
    for name in ("loss", "kl", "accuracy", "desirable_reward", "undesirable_reward"):
        assert [row[name] for row in whole[0]] == pytest.approx([row[name] for row in parts[0]], abs=2e-4), (
            name
        )
    assert far(whole[1], parts[1]) < 1e-3 < far(whole[1], {k: v * 0 for k, v in whole[1].items()})
    first, last = whole[0][0], whole[0][-1]
    share = (np.array([row["desirable_reward"] - row["undesirable_reward"] for row in whole[0]])).tolist()
    assert first["loss"] == pytest.approx(0.5 * 1.15, rel=0.2) and first["kl"] < 1e-4
    assert share[-1] > share[0] == pytest.approx(0.0, abs=1e-4) and last["loss"] < first["loss"]
    assert max(row["kl"] for row in whole[0]) > 1e-3


@pytest.mark.slow
def test_by_the_command_line_with_another_start_refused(
    options: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = options("kto", max_steps=1, precompute_ref_logprobs=True, samples=2)
    file = tmp_path / "kto.yaml"
    file.write_text(json.dumps(chosen), "utf-8")
    for words in (["inspect", str(file)], ["kto", str(file)]):
        assert cli.guarded(lambda words=words: cli.app(words, standalone_mode=False)) == 0
    assert any("held_out_accuracy" in row or "accuracy" in row for row in rows(chosen))
    frozen = references.frozen_copy
    monkeypatch.setattr(references, "frozen_copy", lambda policy: bent(frozen(policy)))
    with pytest.raises(UserError, match=r"refused after its first step.*rewards are up to .* and must be 0"):
        run(chosen | {"resume": False, "pref_beta": 0.5})
