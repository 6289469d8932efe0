"""By hand: the same numbers as the stages, examples that learn, and mistakes that are one message."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import espalier
from espalier import rl
from espalier.errors import UserError
from tests import processes
from tests.stages.conftest import far, rows, run, weights

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OF_A_RUN = ("stage", "save_steps", "logging_steps", "samples", "eval_steps")
Options = Callable[..., dict[str, Any]]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_hand(given: dict[str, Any]) -> dict[str, Any]:
    """The same options without those that are about a run's files."""
    return {key: value for key, value in given.items() if key not in OF_A_RUN}


def same_steps(found: list[dict[str, float]], wanted: list[dict[str, Any]]) -> None:
    steps = [row for row in wanted if "loss" in row]
    assert len(found) == len(steps)
    for ours, theirs in zip(found, steps, strict=True):
        for name in ours.keys() & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-6), name
        assert {"loss", "reward", "kl", "grad_norm", "learning_rate"} <= ours.keys() & theirs.keys()


def policy_weights(training: rl.Training) -> dict[str, torch.Tensor]:
    named = training.policy.lm.named_parameters()
    return {name: parameter.detach() for name, parameter in named}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ptx_dataset": "sft_train.jsonl", "ptx_coef": 0.3, "score_normalization": "standardise",
         "critic_learning_rate": 3e-4, "critic_first_steps": 1, "rollout_prompts": 16},
    ],
    ids=["plain", "with ptx"],
)  # fmt: skip
def test_the_engine_of_the_predecessors_is_stage_ppo(
    world: Path, options: Options, changes: dict[str, Any]
) -> None:
    if "ptx_dataset" in changes:
        changes = changes | {"ptx_dataset": str(world / changes["ptx_dataset"])}
    given = options("ppo", eval_steps=0, samples=0, **changes)
    run(given)
    engine = example("engine_by_hand")

    def trained(seed: int) -> tuple[list[dict[str, float]], rl.Training]:
        trainer = engine.PPOTrainer(engine.RLHFEngine(**by_hand(given), seed=seed))
        return list(engine.train(trainer)), trainer.training

    found, training = trained(42)
    same_steps(found, rows(given))
    assert {"policy_loss", "value_loss", "ratio"} <= found[0].keys()
    assert ("ptx_loss" in found[0]) == bool(changes)
    saved = weights(given)
    ours = policy_weights(training)
    assert far({name: ours[name] for name in saved}, saved) < 1e-6
    critic = weights(given, "critic")
    inside = dict(training.critic.lm.named_parameters())  # type: ignore[union-attr]
    shared = inside.keys() & critic.keys()
    assert len(shared) > 10
    assert (
        far({name: inside[name].detach() for name in shared}, {name: critic[name] for name in shared}) < 1e-6
    )
    # The comparison can fail: another seed gives other answers, and other weights.
    others, elsewhere = trained(7)
    assert far({name: policy_weights(elsewhere)[name] for name in saved}, saved) > 1e-4
    assert others[0]["reward"] != pytest.approx(found[0]["reward"], abs=1e-6)


@pytest.mark.slow
def test_grpo_by_hand_is_stage_grpo(options: Options, tmp_path: Path) -> None:
    given = options("grpo", overlong_buffer=0.5, grpo_epochs=2, rollout_prompts=16)
    run(given)
    said: list[str] = []
    training = rl.begin("grpo", say=said.append, **by_hand(given))
    assert len(training.prompts) == 24 and len(training.held_out) == 6 and training.critic is None
    found, before = [], rl.evaluate(training)
    for number, places in rl.rollouts(training):
        trees = rl.score(training, rl.sample(training, places, number))
        trees = rl.advantages(training, rl.measure(training, trees))
        shape = trees[0].extras["old_logprobs"].shape
        assert trees[0].extras["scores"].shape == (4,) and shape[0] == 4 and shape[1] <= 6
        found += [rl.update(training, part) for part in rl.minibatches(training, trees, number)]
    assert training.steps == training.total_steps == 4 and said
    same_steps(found, rows(given))
    saved = weights(given)
    assert far({name: policy_weights(training)[name] for name in saved}, saved) < 1e-6
    evaluated = [row for row in rows(given) if "eval_reward" in row]
    for ours, theirs in ((before, evaluated[0]), (rl.evaluate(training), evaluated[-1])):
        assert list(ours)[:2] == ["reward", "reward_stderr"] and "yardstick" in ours
        for name, value in ours.items():
            assert value == pytest.approx(theirs[f"eval_{name}"], rel=1e-6, abs=1e-6), name
    assert before["reward"] != rl.evaluate(training)["reward"]
    rl.save(training, tmp_path / "by_hand")
    lm, tokenizer = espalier.load_model(str(tmp_path / "by_hand"))
    assert far({name: lm.state_dict()[name] for name in saved}, saved) < 1e-6
    assert tokenizer.chat_template
    with pytest.raises(UserError, match="exists already"):
        rl.save(training, tmp_path / "by_hand")


def test_scores_of_ones_own_go_the_same_way(options: Options) -> None:
    given = by_hand(options("grpo", max_steps=1)) | {"reward_function": "equals"}
    training = rl.begin("grpo", **given)
    answers = rl.sample(training, range(8), 0)
    trees = [
        group.tree.with_extras(scores=torch.tensor([-len(text) / 100 for text in group.texts]))
        for group in answers
    ]
    numbers = rl.update(training, rl.advantages(training, rl.measure(training, trees)))
    other = rl.begin("grpo", **given | {"reward_function": "brevity"})
    answers = rl.sample(other, range(8), 0)
    same = rl.update(other, rl.advantages(other, rl.measure(other, rl.score(other, answers))))
    assert numbers["loss"] == same["loss"] and numbers["grad_norm"] == same["grad_norm"] > 0
    assert numbers["reward"] == same["reward"] != 0


def test_a_piece_out_of_order_says_what_comes_first(options: Options) -> None:
    training = rl.begin("grpo", **by_hand(options("grpo")))
    answers = rl.sample(training, [0], 0)
    bare = [group.tree for group in answers]
    with pytest.raises(UserError, match=r"no 'scores'.*call `score` first"):
        rl.measure(training, bare)
    scored = rl.score(training, answers)
    with pytest.raises(UserError, match=r"no 'old_logprobs'.*call `measure` first"):
        rl.advantages(training, scored)
    with pytest.raises(UserError, match=r"no 'advantages'.*call `advantages` first"):
        rl.update(training, rl.measure(training, scored))


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("sft", {}, "'sft' does not learn from answers of its own; wanted ppo or grpo"),
        ("grop", {}, "'grop' does not learn"),
        ("grpo", {"dynamic_sampling": 2}, "dynamic_sampling replaces groups.*Remove it"),
        ("grpo", {"save_steps": 5}, "`save_steps` is about logs, evaluations or checkpoints.*`save` writes"),
        ("grpo", {"load_best_model_at_end": True}, "`load_best_model_at_end` is about"),
        ("grpo", {"group_sise": 4}, "group_sise.*Did you mean `group_size`"),
        ("grpo", {"strategy": "fsdp"}, "strategy: fsdp cuts the models"),
        ("ppo", {"reward_model": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
def test_what_cannot_be_done_by_hand_is_one_message(
    options: Options,
    stage: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    given = by_hand(options(stage if stage in ("ppo", "sft") else "grpo")) | changes
    with pytest.raises(UserError, match=f"(?s){said}"):
        rl.begin(stage, **given)


def test_without_held_out_prompts_there_is_nothing_to_evaluate(options: Options) -> None:
    training = rl.begin("grpo", **by_hand(options("grpo", eval_dataset=None)))
    with pytest.raises(UserError, match=r"no held-out prompts. Give eval_dataset or val_size"):
        rl.evaluate(training)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo_by_hand", "grpo_by_hand"])
def test_the_examples_learn(name: str) -> None:
    file = EXAMPLES / f"{name}.py"
    assert len(file.read_text("utf-8").splitlines()) < 60
    code = f"import runpy; runpy.run_path({str(file)!r}, run_name='__main__')"
    process = processes.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said[-2000:]
    shown = [float(value) for value in re.findall(r"^step +\d+ +reward (\S+)", said, re.M)]
    assert len(shown) >= 4 and shown[-1] > shown[0] + 0.2, said
    (held_out,) = re.findall(r"held out: reward (\S+) ± (\S+)", said)
    assert float(held_out[0]) - 2 * float(held_out[1]) > shown[0], said


def test_the_engine_is_short_and_has_the_predecessors_names() -> None:
    assert len((EXAMPLES / "engine_by_hand.py").read_text("utf-8").splitlines()) < 100
    engine = example("engine_by_hand")
    assert callable(engine.PPOTrainer.generate_experience) and callable(engine.PPOTrainer.train_rlhf)


@pytest.mark.slow
def test_the_engine_takes_a_file(options: Options, tmp_path: Path) -> None:
    file = tmp_path / "ppo.yaml"
    given = by_hand(options("ppo", max_steps=1, ppo_epochs=1)) | {"stage": "ppo"}
    file.write_text(json.dumps(given), "utf-8")
    code = f"import runpy, sys; sys.argv = ['engine', {str(file)!r}]; runpy.run_path({str(EXAMPLES / 'engine_by_hand.py')!r}, run_name='__main__')"
    process = processes.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said[-2000:]
    assert said.count("'policy_loss'") == 1 and "'reward'" in said
