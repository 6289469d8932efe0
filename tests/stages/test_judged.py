"""What an evaluation of PPO and GRPO measures, against plain loops; planted tricks are called out, an honest run is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from espalier.errors import UserError
from espalier.maths.metrics import exact_match
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample
from espalier.models.saved import read_scalar_head
from espalier.report.page import write_report
from tests.rollout.rewards import served
from tests.stages.conftest import options_of, rows, run

pytestmark = pytest.mark.slow
Make = Callable[..., dict[str, Any]]
PROMPTS = [f"{a} and {b}?" for a in range(6) for b in range(6)]
RULES = """
def longer(prompt, answer, reference):
    return len(answer) / 10

def word(prompt, answer, reference):
    return min(answer.count("no"), 4)

def right(prompt, answer, reference):
    return 2 * float(answer == reference) - 1

def broken(prompt, answer, reference):
    return len(reference)
"""


@pytest.fixture(scope="module")
def told(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts, the rules of this file, and a model that answers most prompts rightly: yes or no."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "rules.py").write_text(RULES, "utf-8")
    lines = [
        json.dumps({"prompt": prompt, "completion": said, "reference": said})
        for i, prompt in enumerate(PROMPTS)
        for said in ["yes." if i % 2 else "no."]
    ]
    for name, part in (("train", lines), ("dev", lines[:16])):
        (folder / f"{name}.jsonl").write_text("\n".join(lines if name == "train" else part), "utf-8")
    made = options_of(world, folder / "run", "sft", dataset=[str(folder / "train.jsonl")],
                      eval_dataset=[str(folder / "dev.jsonl")], max_steps=32, learning_rate=1e-2, lr_scheduler_type="constant",
                      per_device_train_batch_size=18, samples=0, logging_steps=10)  # fmt: skip
    run(made)
    return folder


def learning(told: Path, tmp_path: Path, rule: str, **changes: Any) -> dict[str, Any]:
    """Options of a GRPO run that learns fast."""
    return {
        "stage": "grpo", "output_dir": str(tmp_path / "run"), "model_name_or_path": str(told / "run" / "sft" / "model"),
        "dataset": [str(told / "train.jsonl")], "eval_dataset": [str(told / "dev.jsonl")], "cutoff_len": 64,
        "reward_function": rule if ":" not in rule else str(told / "rules.py") + rule, "max_new_tokens": 12,
        "group_size": 8, "per_device_train_batch_size": 12, "learning_rate": 2e-3, "lr_scheduler_type": "constant",
        "kl_coef": 0.0, "max_steps": 8, "eval_steps": 2, "samples": 0, "precision": "fp32", "save_steps": 0,
    } | changes  # fmt: skip


def evaluations(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in rows(made) if "eval_reward" in row]


def kinds(summary: dict[str, Any]) -> set[str]:
    return {warning["kind"] for warning in summary["warnings"]}


@pytest.fixture(scope="module")
def tricked(told: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and summary of a run whose reward likes length."""
    made = learning(told, tmp_path_factory.mktemp("tricked"), ":longer")
    return made, run(made)


Tricked = tuple[dict[str, Any], dict[str, Any]]


def test_a_reward_that_likes_length_is_called_out(tricked: Tricked) -> None:
    made, summary = tricked
    first, last = evaluations(made)[0], evaluations(made)[-1]
    assert last["eval_reward"] > first["eval_reward"] + 0.5
    assert last["eval_yardstick"] < first["eval_yardstick"] - 0.4
    assert {"yardstick", "length"} <= kinds(summary)
    (turned,) = [warning for warning in summary["warnings"] if warning["kind"] == "yardstick"]
    assert 0 < turned["step"] < 8 and "the reward rose and the yardstick fell: since step" in turned["text"]
    page = write_report(Path(made["output_dir"])).read_text("utf-8")
    assert (
        "the reward rose and the yardstick fell: since step" in page and "the reward goes with length" in page
    )
    assert page.count("<code>yardstick_greedy</code>") == 2, "in the table beside the reward, and as a curve"
    assert "not by the yardstick" in page and '">better<' not in page


def test_a_reward_that_likes_a_word_is_called_out_in_the_terminal(
    told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = learning(told, tmp_path, ":word", eval_steps=4)
    summary = run(made)
    assert "yardstick" in kinds(summary)
    said = capsys.readouterr().err
    for warning in summary["warnings"]:
        assert f"grpo: step {warning['step']}: {warning['text']}" in said.splitlines()


def test_a_warning_survives_a_stop(told: Path, tricked: Tricked, tmp_path: Path) -> None:
    """Stopped after the first warning: it is kept, and what comes after is what would have come."""
    from tests.stages.test_coincide import _stopped

    broken = learning(told, tmp_path, ":longer", save_steps=1, save_total_limit=1)
    _stopped(broken, 2)
    stopped = json.loads((tmp_path / "run" / "grpo" / "summary.json").read_text("utf-8"))
    assert stopped["status"] == "stopped" and stopped["warnings"], (
        "what was seen is told though it did not end"
    )
    assert run(broken)["warnings"] == tricked[1]["warnings"] != stopped["warnings"]


def test_an_honest_run_is_silent(told: Path, tmp_path: Path) -> None:
    made = learning(told, tmp_path, ":right", max_steps=16, eval_steps=8)
    summary = run(made)
    first, last = evaluations(made)[0], evaluations(made)[-1]
    assert last["eval_yardstick"] > first["eval_yardstick"] + 2 * first["eval_yardstick_stderr"], (
        "it has learned"
    )
    assert summary["warnings"] == []
    page = write_report(tmp_path / "run").read_text("utf-8")
    assert "note warning" not in page and "not by the yardstick" not in page


def test_the_best_evaluation_is_that_of_any_number(told: Path, tricked: Tricked, tmp_path: Path) -> None:
    """By the reward the last one is the best; by the yardstick it is one before the trick was found."""
    chosen = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_yardstick",
        "save_total_limit": 1,
    }
    best = run(learning(told, tmp_path, ":longer", **chosen))
    seen = {row["step"]: row for row in evaluations(tricked[0])}
    step = max((s for s in seen if s), key=lambda s: (seen[s]["eval_yardstick"], -s))
    assert best["best"]["step"] == step < tricked[1]["best"]["step"] == 8
    assert best["best"]["metric"] == "yardstick" and "metric" not in tricked[1]["best"]
    assert best["best"]["value"] == seen[step]["eval_yardstick"]
    assert best["held_out"]["after"] == seen[step]["eval_reward"] != best["best"]["value"]
    assert any(
        f"the weights of step {step} of 8 are saved: its held-out yardstick was" in n for n in best["notes"]
    )


def test_a_number_that_is_not_measured_is_refused_before_the_first_step(told: Path, tmp_path: Path) -> None:
    made = learning(told, tmp_path, ":longer", metric_for_best_model="accuracy")
    with pytest.raises(
        UserError, match=r"metric_for_best_model: accuracy is no number .* best_of_2, best_of_4, .* reward, "
    ):
        run(made)
    assert not (tmp_path / "run" / "grpo" / "metrics.jsonl").exists(), "nothing was logged"


class Answers:
    """The held-out answers of a run's last evaluation: ids and whether each is sampled, by prompt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from espalier.stages.rollouts import Roller

        real = Roller.held_out_answers

        def kept(roller: Roller, *given: Any) -> Any:
            self.groups = real(roller, *given)
            return self.groups

        monkeypatch.setattr(Roller, "held_out_answers", kept)

    def paths(self) -> list[list[tuple[list[int], list[int]]]]:
        """(prompt, answer) of each answer to each prompt, the likeliest one last."""
        return [
            [(ids[~trained].tolist(), ids[trained].tolist()) for ids, trained in group.tree.paths()]
            for group in self.groups
        ]


@torch.no_grad()
def said_by(lm: Any, prompt: list[int], answer: list[int]) -> tuple[Tensor, Tensor]:
    """The answer's logprobs and the entropies of what it was drawn from, by a plain forward."""
    logits = lm(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(-1)
    return logprobs.gather(1, torch.tensor(answer)[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def plain_model(folder: Path, adapter: Path | None = None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return lm if adapter is None else PeftModel.from_pretrained(lm, str(adapter)).eval()


@pytest.mark.parametrize(
    "changes", [{}, {"finetuning_type": "lora", "lora_rank": 4}, {"layout": "padded"}], ids=str
)
def test_every_number_is_what_a_plain_loop_finds(
    changes: dict[str, Any], told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers(monkeypatch)
    made = learning(
        told, tmp_path, "brevity", eval_samples=3, max_steps=4, eval_steps=None, learning_rate=5e-3, **changes
    )
    run(made)
    row, base = evaluations(made)[-1], told / "run" / "sft" / "model"
    own = tmp_path / "run" / "grpo" / "model"
    policy, reference = (plain_model(base, own), plain_model(base)) if "finetuning_type" in changes else (
        plain_model(own), plain_model(base))  # fmt: skip
    kl, entropies, likeliest = [], [], 0
    for paths in answers.paths():
        of_prompt = []
        for prompt, answer in paths[:2]:
            logprobs, entropy = said_by(policy, prompt, answer)
            of_prompt.append(float((logprobs - said_by(reference, prompt, answer)[0]).sum()))
            entropies += entropy.tolist()
        kl.append(fmean(of_prompt))
        prompt, answer = paths[-1]
        logits = policy(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        likeliest += logits.argmax(-1).tolist() == answer
    assert likeliest == len(kl) == 16
    assert row["eval_kl"] == pytest.approx(fmean(kl), abs=1e-4) and abs(fmean(kl)) > 0.01
    assert row["eval_kl_stderr"] == pytest.approx(np.std(kl, ddof=1) / 16**0.5, rel=1e-3)
    assert row["eval_entropy"] == pytest.approx(fmean(entropies), abs=1e-4)
    texts = [group.texts for group in answers.groups]
    reward = [[-len(text) / 100 for text in group] for group in texts]
    right = [[float(exact_match(t, [g.ask.reference])) for t in g.texts] for g in answers.groups]
    lengths = [[len(answer) for _, answer in paths] for paths in answers.paths()]
    ended = [group.ended for group in answers.groups]
    for name, values in (
        ("reward", reward),
        ("yardstick", right),
        ("answer_tokens", lengths),
        ("ended", ended),
    ):
        assert row[f"eval_{name}"] == pytest.approx(fmean(fmean(v[:-1]) for v in values)), name
        assert row[f"eval_{name}_greedy"] == pytest.approx(fmean(v[-1] for v in values)), name
    best = [fmean(max(pair) for pair in combinations(v[:-1], 2)) for v in reward]
    assert row["eval_best_of_2"] == pytest.approx(fmean(best)) and fmean(best) > row["eval_reward"]
    same = [fmean(a == b for a, b in combinations(group[:-1], 2)) for group in texts]
    assert row["eval_duplicates"] == pytest.approx(fmean(same))
    x, y = (
        np.array([np.array(v[:-1]) - fmean(v[:-1]) for v in values]).ravel() for values in (reward, lengths)
    )
    assert row["eval_length_correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)
    assert row["eval_length_correlation"] < -0.5, "the short are liked"


def test_the_critic_is_judged_by_the_rewards_that_came(
    options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel

    answers = Answers(monkeypatch)
    made = options(
        "ppo", samples=0, reward_score_at="answer", gamma=0.9, kl_coef=0.5, reward_clip=0.05, max_steps=3
    )
    run(made)
    row, folder = evaluations(made)[-1], Path(made["output_dir"]) / "ppo"
    assert row["eval_kl_coef"] != 0.5, "the price has moved"
    training = [r["kl_coef"] for r in rows(made) if "kl_coef" in r]
    assert training[0] == 0.5 and training[-1] != 0.5
    policy, reference = plain_model(folder / "model"), plain_model(Path(made["model_name_or_path"]))
    critic = AutoModel.from_pretrained(folder / "critic", dtype=torch.float32).eval()
    head, judge_head = read_scalar_head(str(folder / "critic")), read_scalar_head(made["reward_model"])
    judge = AutoModel.from_pretrained(made["reward_model"], dtype=torch.float32).eval()
    assert head is not None and judge_head is not None
    values, returns, cut = [], [], 0
    for paths in answers.paths():
        for at, (prompt, answer) in enumerate(paths[:-1]):
            ids = torch.tensor([prompt + answer])
            with torch.no_grad():
                score = float(judge_head(judge(input_ids=ids).last_hidden_state[0, -1:])[0])
                cut += abs(score) > 0.05
                if at > 1:
                    continue
                foreseen = head(critic(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1])
            kl = said_by(policy, prompt, answer)[0] - said_by(reference, prompt, answer)[0]
            rewards = (-row["eval_kl_coef"] * kl).tolist()
            rewards[-1] += max(-0.05, min(0.05, score))
            total, later = 0.0, []
            for reward in reversed(rewards):
                total = reward + 0.9 * total
                later.append(total)
            values += foreseen.tolist()
            returns += later[::-1]
    left = np.array(returns) - np.array(values)
    assert row["eval_explained_variance"] == pytest.approx(1 - left.var() / np.var(returns), abs=2e-3)
    assert row["eval_score_clipped"] == pytest.approx(cut / (4 * len(answers.groups)))
    assert cut > 0


def test_what_the_run_says_of_its_yardstick(told: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.jsonl"
    bare.write_text("\n".join(json.dumps({"prompt": f"{i}?"}) for i in range(4)), "utf-8")
    short = {"max_steps": 1, "eval_samples": 1}
    for number, (rule, changes, note, measured) in enumerate(
        [
            ("equals", {}, "the reward is the rule equals, which is its own yardstick", True),
            ("contains", {}, None, True),
            (":longer", {"yardstick": "none"}, None, False),
            (
                "brevity",
                {"eval_dataset": [str(bare)]},
                "no yardstick beside the reward: a held-out prompt has no ref",
                False,
            ),
            (
                "brevity",
                {"yardstick": f"{told / 'rules.py'}:longer", "eval_dataset": [str(bare)]},
                None,
                True,
            ),
        ]
    ):
        made = learning(told, tmp_path, rule, name=f"run{number}", **{**short, **changes})
        summary = run(made)
        assert note is None or any(note in line for line in summary["notes"])
        assert note is not None or not any("yardstick" in line for line in summary["notes"])
        row = evaluations(made)[0]
        assert ("eval_yardstick" in row) == ("eval_yardstick_greedy" in row) == measured
        assert not {"eval_duplicates", "eval_best_of_2", "eval_length_correlation"} & row.keys(), (
            "one answer a prompt"
        )
    assert evaluations({"output_dir": str(tmp_path / "run"), "stage": "run4"})[0]["eval_yardstick"] > 0
    with pytest.raises(UserError, match=r"bare.jsonl:1: the yardstick number compares with a reference"):
        run(learning(told, tmp_path, "brevity", yardstick="number", eval_dataset=[str(bare)]))
    with pytest.raises(UserError, match=r"yardstick: unknown rule 'nonsense'. Known: equals"):
        run(learning(told, tmp_path, "brevity", yardstick="nonsense"))
    with pytest.raises(UserError, match=r"^yardstick .*broken raised .*rules.py:12: TypeError"):
        run(
            learning(
                told, tmp_path, "brevity", yardstick=f"{told / 'rules.py'}:broken", eval_dataset=[str(bare)]
            )
        )


def test_a_judge_and_a_list_are_yardsticks(told: Path, tmp_path: Path) -> None:
    log = tmp_path / "judge.jsonl"
    process = subprocess.Popen([sys.executable, served.__file__, str(log)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    asked = [
        {"type": "judge", "url": url, "model": "judge"},
        {"type": "pattern", "pattern": "o", "weight": 100},
    ]
    try:
        made = learning(told, tmp_path, ":longer", yardstick=asked, max_steps=1, eval_samples=2)
        run(made)
    finally:
        process.kill()
        process.wait()
    lines = [json.loads(line)["text"] for line in log.read_text("utf-8").splitlines()]
    said = [text.partition("[Answer]\n")[2].partition("\n\nGive")[0] for text in lines]
    assert len(said) >= 16, "the judge was asked about held-out answers"
    row = evaluations(made)[0]
    assert row["eval_yardstick_greedy"] > 1, "a rating of 1 to 10, and 100 for each o"
    summary = json.loads((tmp_path / "run" / "grpo" / "summary.json").read_text("utf-8"))
    assert not any("its own yardstick" in note for note in summary["notes"])
    with pytest.raises(UserError, match="`yardstick` has a reward model, and a yardstick is a rule"):
        run(learning(told, tmp_path, ":longer", yardstick=[{"type": "model", "path": str(told)}]))


def test_a_yardstick_that_tells_nothing_apart_is_said(options: Make) -> None:
    """A model that has learned nothing answers nothing rightly."""
    summary = run(options("grpo", max_steps=1, samples=0))
    assert any(
        "the yardstick equals gives 0 to all 30 held-out answers so far" in n for n in summary["notes"]
    )


def test_no_held_out_prompts_are_no_numbers(told: Path, tmp_path: Path) -> None:
    made = learning(told, tmp_path, ":longer", max_steps=2, eval_dataset=None)
    summary = run(made)
    assert summary["warnings"] == [] and summary["held_out"] == {}
    assert any(note.startswith("no held-out prompts: nothing shows") for note in summary["notes"])
    assert [key for row in rows(made) for key in row if key.startswith("eval_")] == []


def test_the_likeliest_answer_and_the_sampled_ones_are_those_of_two_calls(world: Path) -> None:
    lm = plain_model(world / "base")
    traits, prompts = probe(lm), [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    form = {"max_new_tokens": 8, "stop": tuple(range(20, 60))}
    both = sample(lm, traits, prompts, Sampling(**form, likeliest=True), copies=4, seeds=[3, 1, 2], rows=5)
    drawn = sample(lm, traits, prompts, Sampling(**form), copies=3, seeds=[3, 1, 2])
    best = sample(lm, traits, prompts, Sampling(**form, temperature=0.0))
    for group, sampled, (likeliest,) in zip(both, drawn, best, strict=True):
        assert [answer.tokens for answer in group[:3]] == [answer.tokens for answer in sampled]
        assert group[3].tokens == likeliest.tokens and group[3].ended == likeliest.ended
        assert group[3].logprobs == pytest.approx(likeliest.logprobs, abs=1e-5)
    assert any(group[3].tokens != answer.tokens for group in both for answer in group[:3])
