"""Numbers that are none, rewards that fail, signals: one message, the right status, and nothing good is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from espalier.engine.step import Hooks, Learner
from espalier.errors import Stopped, UserError
from espalier.runs import train
from tests.stages.conftest import far, rows, run, start, weights

Make = Callable[..., dict[str, Any]]


def folder(options: dict[str, Any]) -> Path:
    return Path(options["output_dir"]) / options.get("name", options["stage"])


def status(options: dict[str, Any]) -> str:
    return str(json.loads((folder(options) / "summary.json").read_text("utf-8"))["status"])


def checkpoints(options: dict[str, Any]) -> list[str]:
    return sorted(path.name for path in (folder(options) / "checkpoints").glob("step-*"))


@pytest.fixture
def rewards(tmp_path: Path) -> Callable[[str], str]:
    """A reward function's body (`n` is the number of its call, from 1) as ``FILE.py:score``."""

    def write(body: str) -> str:
        file = tmp_path / "mine.py"
        file.write_text(
            "import itertools, math, os, time\nnumbers = itertools.count(1)\n"
            f"def score(prompt, answer, reference):\n    n = next(numbers)\n    {body}\n",
            "utf-8",
        )
        return f"{file}:score"

    return write


# --- numbers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [True, False])
def test_a_base_with_broken_weights_is_named_before_a_step(
    held_out: bool, options: Make, world: Path, tmp_path: Path
) -> None:
    broken = broken_copy(world / "base", tmp_path / "broken")
    chosen = options("sft", model_name_or_path=broken, precision="fp32")
    if not held_out:
        del chosen["eval_dataset"]
    wanted = "step 0: eval_loss is nan" if held_out else "step 0: the model gives logits that are no num"
    with pytest.raises(UserError, match=wanted) as said:
        run(chosen)
    assert "1 in " in str(said.value) and "mlp.up_proj" in str(said.value), "the cause is the weights"
    assert status(chosen) == "failed" and not (folder(chosen) / "model").exists()


def broken_copy(model: Path, to: Path) -> str:
    """A model folder with one weight that is no number."""
    shutil.copytree(model, to)
    tensors = load_file(to / "model.safetensors")
    name = next(name for name in tensors if "mlp.up_proj" in name)
    tensors[name].view(-1)[5] = float("nan")
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return str(to)


@pytest.mark.parametrize("which", ["model_name_or_path", "reward_model"])
def test_broken_models_of_a_rollout_are_named(which: str, options: Make, world: Path, tmp_path: Path) -> None:
    broken = broken_copy(world / {"reward_model": "judge"}.get(which, "base"), tmp_path / "broken")
    with pytest.raises(UserError, match="weights are broken"):
        run(options("ppo", **{which: broken}))


@pytest.mark.parametrize("held_out", [True, False])
def test_weights_that_the_last_step_broke_take_no_place(held_out: bool, options: Make) -> None:
    chosen = options("sft", learning_rate=1e-3, max_steps=2, save_steps=1, precision="fp32")
    if not held_out:
        del chosen["eval_dataset"]
    run(chosen)
    good = weights(chosen)
    # A rate that no float32 holds: the loss of the last step is finite, for it is of the weights before.
    wild = chosen | {"learning_rate": 1e39, "max_steps": 1, "lr_scheduler_type": "constant", "resume": False}
    with pytest.raises(
        UserError, match=r"step 1: after it the weights hold values that are no numbers \(\d+ in "
    ):
        run(wild)
    assert status(wild) == "failed" and far(weights(wild), good) == 0.0, "the earlier model is kept"


def test_weights_that_broke_in_the_middle_are_no_checkpoint(
    options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options("sft", save_steps=1)
    real = train.run_loop

    def broken_at_step_3(learner: Learner, *others: Any) -> Any:
        def spoil(step: int) -> None:
            if step == 3:
                next(learner.module.parameters()).data.fill_(float("inf"))

        (hooks,) = (one for one in others if isinstance(one, Hooks))
        object.__setattr__(hooks, "after_step", spoil)
        return real(learner, *others)

    monkeypatch.setattr(train, "run_loop", broken_at_step_3)
    with pytest.raises(UserError, match="step 3: after it the weights hold"):
        run(chosen)
    assert checkpoints(chosen) == ["step-1", "step-2"]
    assert status(chosen) == "failed" and not (folder(chosen) / "model").exists()


# --- rewards ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("return None if n > 20 else n % 3", "returned None"),
        ("return math.nan if n > 20 else n % 3", "returned nan"),
        ("return {}['surprise'] if n > 20 else n % 3", r"raised .*mine\.py:5: KeyError: 'surprise'"),
        (
            "return time.sleep(1000) if n > 20 else n % 3",
            r"has not come back after 0\.5 s \(reward_timeout: 0\.5",
        ),
        ("return os._exit(3) if n > 20 else n % 3", r"took its process with it \(.* ended with 3\)"),
    ],
    ids=["none", "nan", "raises", "hangs", "dies"],
)
def test_a_reward_that_fails_names_its_answer_and_keeps_the_checkpoint(
    body: str, wanted: str, options: Make, rewards: Callable[[str], str]
) -> None:
    chosen = options("grpo", reward_function=rewards(body), reward_timeout=0.5, save_steps=1, group_size=2,
                     eval_samples=1, per_device_train_batch_size=4)  # fmt: skip
    with pytest.raises(UserError, match=wanted) as said:
        run(chosen)
    assert "for the answer '" in str(said.value) and "prompts.jsonl:" in str(said.value)
    assert "begins at line 3 of" in str(said.value)
    assert status(chosen) == "failed" and checkpoints(chosen) == ["step-1"]


@pytest.mark.slow
def test_one_ctrl_c_ends_the_wait_for_a_reward_with_a_checkpoint(
    options: Make, rewards: Callable[[str], str], tmp_path: Path
) -> None:
    reached = tmp_path / "reached"
    once = f"(open({str(reached)!r}, 'w').close(), time.sleep(1000))"
    body = f"return n % 3 if n <= 20 or __import__('os').path.exists({str(reached)!r}) else {once}"
    chosen = options("grpo", reward_function=rewards(body), group_size=2, eval_samples=1,
                     per_device_train_batch_size=4)  # fmt: skip

    def press() -> None:
        while not reached.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(Stopped, match="stopped at step 1"):
        run(chosen)
    assert status(chosen) == "stopped" and checkpoints(chosen) == ["step-1"]
    assert run(chosen)["status"] == "done"


@pytest.mark.slow
def test_equal_rewards_are_no_step(options: Make, rewards: Callable[[str], str], world: Path) -> None:
    for price in (0.0, 0.05):
        name = f"price{price}"
        chosen = options(
            "grpo", name=name, reward_function=rewards("return 1.0"), kl_coef=price, precision="fp32"
        )
        summary = run(chosen)
        base = load_file(world / "base" / "model.safetensors")
        assert all(torch.equal(tensor, weights(chosen)[key]) for key, tensor in base.items())
        assert summary["idle_steps"] == 4
        told = [row for row in rows(chosen) if "loss" in row]
        assert [row["idle_steps"] for row in told] == [1, 2, 3, 4] and told[-1]["grad_norm"] == 0.0
        assert all(row["reward"] == 1.0 for row in told), "the numbers are logged as ever"
    other = options("grpo", name="other", reward_function=rewards("return n % 3"), kl_coef=0.0)
    assert run(other)["idle_steps"] == 0 and "idle_steps" not in rows(other)[-2]


def test_a_group_of_one_is_refused(options: Make) -> None:
    with pytest.raises(UserError, match=r"group_size: 1 in grpo: .* alone it has no advantage"):
        run(options("grpo", group_size=1))


@pytest.mark.slow
def test_a_clip_that_makes_all_scores_equal_is_said_and_counted(
    options: Make, rewards: Callable[[str], str]
) -> None:
    function = rewards("return 10.0 + n % 3")
    chosen = options("ppo", reward_model=None, reward_function=function, kl_target=None, max_steps=2)
    summary = run({k: v for k, v in chosen.items() if v is not None})
    (note,) = [note for note in summary["notes"] if "reward_clip" in note]
    assert "16 of 16 scores (10 to 12) were cut to reward_clip 5" in note
    assert [row["score_clipped"] for row in rows(chosen) if "loss" in row] == [1.0, 1.0]
    wide = chosen | {"name": "wide", "reward_clip": 20.0}
    summary = run({k: v for k, v in wide.items() if v is not None})
    assert not [note for note in summary["notes"] if "reward_clip" in note]
    assert [row["score_clipped"] for row in rows(wide) if "loss" in row] == [0.0, 0.0]


# --- two processes ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_score_each_answer_once_and_stop_by_one_signal(
    options: Make, world: Path, tmp_path: Path
) -> None:
    """Three prompts, two at a time, so that one comes twice in a rollout; one held-out prompt for two ranks."""
    lines = (world / "prompts.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "three.jsonl").write_text("".join(lines[:3]), "utf-8")
    (tmp_path / "one.jsonl").write_text(lines[5], "utf-8")
    (tmp_path / "counted.py").write_text(
        "import os\ndef score(prompt, answer, reference):\n"
        "    with open(os.environ['COUNTED'], 'a') as file: file.write(repr((prompt, answer)) + '\\n')\n"
        "    return float(len(answer) % 5)\n",
        "utf-8",
    )
    chosen = options(
        "grpo", name="one", dataset=[str(tmp_path / "three.jsonl")], eval_dataset=[str(tmp_path / "one.jsonl")],
        reward_function=f"{tmp_path}/counted.py:score", rollout_prompts=2, per_device_train_batch_size=2,
        max_steps=6, temperature=2.0, eval_samples=1, precision="fp32", max_new_tokens=8, lr_scheduler_type="constant",
    )  # fmt: skip
    os.environ["COUNTED"] = str(tmp_path / "by-one")
    run(chosen)
    two = chosen | {"name": "two", "per_device_train_batch_size": 1, "strategy": "ddp", "max_steps": 5000}
    os.environ["COUNTED"] = str(tmp_path / "by-two")
    process = start(two, tmp_path, ranks=2)
    path = folder(two) / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and '"step": 6,' in path.read_text("utf-8")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3, said[-3000:]
    assert "Traceback" not in said and said.count("stopped at step") == 1
    steps = json.loads((folder(two) / "summary.json").read_text("utf-8"))["steps"]
    assert status(two) == "stopped" and checkpoints(two) == [f"step-{steps}"]

    by_one, by_two = ((tmp_path / f"by-{n}").read_text("utf-8").splitlines() for n in ("one", "two"))
    # An evaluation scores a sampled answer and the likeliest one.
    assert len(by_one) == 2 + 6 * 8 + 2 and len(by_two) == 2 + steps * 8, "each answer is scored once"
    assert sorted(by_one[2:-2]) == sorted(by_two[2:50])
    # Steps 2 and 5 meet a prompt twice: its two groups are not copies.
    for begin in (10, 34):
        groups = by_one[begin : begin + 4], by_one[begin + 4 : begin + 8]
        if groups[0][0].split("', '")[0] == groups[1][0].split("', '")[0]:
            assert groups[0] != groups[1]
    for key in ("loss", "reward", "answer_tokens", "grad_norm"):
        ours, theirs = ([r[key] for r in rows(o) if key in r][:6] for o in (chosen, two))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), key
