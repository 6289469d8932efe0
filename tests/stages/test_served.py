"""Rollouts from a vLLM server (a second process with the same HTTP, over transformers), which follows the policy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.errors import UserError
from espalier.models.sampling.generate import Sampling
from espalier.rollout.server import SamplingServer
from espalier.stages.served import SERVED, ServedSampling
from espalier.trees import Tree
from tests import processes
from tests.stages.conftest import rows, run, weights

Make = Callable[..., dict[str, Any]]


@contextmanager
def server_of(folder: Path, *flags: str) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.rollout.fake_vllm", str(folder), *flags]
    process = processes.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


def seen(url: str) -> list[str]:
    with urllib.request.urlopen(f"{url}/seen") as reply:
        found: list[str] = json.load(reply)
    return found


@pytest.fixture
def gaps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The mean distance of each rollout between what the server and the policy say of its tokens."""
    found: list[float] = []
    trusted = ServedSampling.trusted

    def watched(self: ServedSampling, trees: list[Tree]) -> list[Tree]:
        made = trusted(self, trees)
        apart = [(t.extras["old_logprobs"] - t.extras[SERVED]).abs().flatten() for t in trees]
        found.append(float(torch.cat(apart).mean()))
        return made

    monkeypatch.setattr(ServedSampling, "trusted", watched)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_the_server_follows_the_policy(
    stage: str, options: Make, world: Path, tmp_path: Path, gaps: list[float]
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(world / "base", folder)
    with server_of(folder) as url:
        made = options(
            stage, rollout_server=url, rollout_weights=str(folder), max_steps=3, learning_rate=1e-2, eval_samples=1
        )  # fmt: skip
        run(made)
        assert seen(url).count("/collective_rpc") >= 3
    assert len(gaps) >= 2 and max(gaps) < 1e-4, gaps
    trained = [row for row in rows(made) if "importance" in row]
    assert trained and all(abs(row["importance"] - 1) < 1e-3 for row in trained)
    assert any("eval_reward_greedy" in row for row in rows(made))


@pytest.mark.slow
def test_an_adapter_is_loaded_anew_for_each_rollout(options: Make, world: Path, gaps: list[float]) -> None:
    with server_of(world / "base") as url:
        made = options(
            "grpo", rollout_server=f"{url}/v1/", max_steps=3, learning_rate=3e-2, finetuning_type="lora", eval_steps=0
        )  # fmt: skip
        run(made)
        paths = seen(url)
    assert paths.count("/v1/load_lora_adapter") - paths.count("/v1/unload_lora_adapter") == 1
    assert len(gaps) == 3 and max(gaps) < 1e-4, gaps
    assert max(float(t.abs().max()) for t in weights(made).values()) > 0


@pytest.mark.slow
def test_a_server_with_old_weights_is_corrected_for_and_seen(
    options: Make, world: Path, tmp_path: Path, gaps: list[float]
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(world / "base", folder)
    with server_of(folder, "--stale") as url:
        made = options("grpo", rollout_server=url, rollout_weights=str(folder), max_steps=3, learning_rate=1e-2, eval_steps=0)  # fmt: skip
        run(made)
    assert gaps[0] < 1e-4 < 0.05 < gaps[-1], "or the test above proves nothing"
    last = [row for row in rows(made) if "importance" in row][-1]
    assert abs(last["importance"] - 1) > 1e-3


def test_other_weights_are_refused_at_the_start(options: Make, world: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(world / "base", other)
    from safetensors.torch import load_file, save_file

    tensors = load_file(other / "model.safetensors")
    save_file({name: 40 * t for name, t in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    with (
        server_of(other, "--stale") as url,
        pytest.raises(UserError, match=r"policy and server differ by .* nats a token before the first step"),
    ):
        run(options("grpo", rollout_server=url, max_steps=1, eval_steps=0))


def test_what_a_server_cannot_do_is_refused(options: Make) -> None:
    with pytest.raises(UserError, match="rollout_server with top_p or top_k is not possible"):
        run(options("grpo", rollout_server="http://127.0.0.1:9", top_p=0.9))
    with pytest.raises(UserError, match="rollout_server with finetuning_type: prompt"):
        run(options("grpo", rollout_server="http://127.0.0.1:9", finetuning_type="prompt"))
    with pytest.raises(UserError, match=r"rollout_server: http://127\.0\.0\.1:9/v1/models cannot be asked"):
        run(options("ppo", rollout_server="http://127.0.0.1:9/v1"))


@pytest.mark.slow
def test_answers_by_seed_stop_and_likeliest(world: Path) -> None:
    with server_of(world / "base") as url:
        server = SamplingServer(url)
        server.ready()
        prompts, how = [[5, 6, 7], [8, 9]], Sampling(5, 1.0, stop=(3,), likeliest=True)
        found = server.sample(prompts, how, copies=3, seeds=[1, 2**40 + 2])
        again = server.sample(prompts, how, copies=3, seeds=[1, 2**40 + 2])
        assert found == again and [len(answers) for answers in found] == [3, 3]
        assert all(len(a.tokens) == len(a.logprobs) for answers in found for a in answers)
        assert all(a.ended == (a.tokens[-1] == 3) for answers in found for a in answers)
        assert found[0][0].tokens != found[0][1].tokens
        with pytest.raises(UserError, match="ended an answer at none of the run's end tokens"):
            server._completion(
                {"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop"}, how
            )
        server.model = "another"
        with pytest.raises(UserError, match=r"answers 404 .*no model another"):
            server.sample(prompts, how, copies=1, seeds=[1, 2])
