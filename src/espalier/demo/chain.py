"""The demo: the whole chain, from text that the package writes itself to models that have been judged.

It is an ordinary pipeline (`chain.yaml`); this module writes the data, runs it, and says in one table what
each stage did to its own held-out number, and whether that is more than noise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.table import Table

from espalier import config
from espalier.demo.data import write_demo_data
from espalier.engine import files
from espalier.errors import UserError
from espalier.exam.numbers.compare import numbers_by_question
from espalier.maths.metrics import Difference, paired_difference
from espalier.runs.pipeline import run_options
from espalier.screen import Screen

TRAINED = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo")
EXAMINED = ("pretrain", "sft", "dpo", "ppo", "grpo")
AFTER_SFT = ("dpo", "ppo", "grpo")
MUST_IMPROVE_QUICK = ("sft", "reward")
EXAMS = ("exam.yaml", "exam_generation.yaml", "exam_sampled.yaml")
WAYS = {"exact": "demo_exact_match", "sampled": "demo_sampled"}
"""How a question is answered -> the exam that counts the answers that are exactly right."""

REWARD_ACCURACY = 0.9
QUICK_SIZES = {"pretrain": 2100, "pref_train": 800}


def run_demo(out: Path, *, quick: bool, seed: int = 1) -> int:
    """Run the chain in `out` and print what it did; returns the exit code.

    1 when a stage did not improve its number (with `quick` only SFT and the reward model must), and when DPO, PPO or GRPO
    writes fewer answers exactly right than SFT did, beyond chance.

    Raises:
        UserError: `out` holds something that is no demo.
    """
    console = Screen()
    if out.exists() and any(out.iterdir()) and not (out / "data").is_dir():
        raise UserError(f"{out}: exists and holds no demo. Choose another folder with --out.")
    start = time.perf_counter()
    data = out / "data"
    write_demo_data(data, seed, QUICK_SIZES if quick else None)
    here = resources("espalier.demo")
    for name in EXAMS:
        files.write_text(data / name, (here / name).read_text("utf-8"))
    text = (here / "chain.yaml").read_text("utf-8")
    for name, value in (("data", data), ("out", out), ("seed", seed)):
        text = text.replace("{" + name + "}", str(value))
    pipeline = out / "pipeline.yaml"
    files.write_text(pipeline, text)
    raw = config.load_yaml(pipeline, _quicker() if quick else [])
    run_options(raw)
    rows = [_row(out, name) for name in TRAINED]
    exams = {name: _exam(out, name) for name in EXAMINED}
    _show(console, rows)
    failed = _failures(rows, exams, quick)
    changes = {
        name: {way: change(*(_exact(out, model, way) for model in ("sft", name))) for way in WAYS}
        for name in AFTER_SFT
    }
    _show_exams(console, exams, changes)
    lost = [
        line for name in AFTER_SFT for way in WAYS if (line := below(f"{name}, {way}", changes[name][way]))
    ]
    console.say(f"\n{time.perf_counter() - start:.0f} s in all. The report: {out / 'report.html'}")
    console.say(f"Talk to it: espalier chat {out / 'grpo' / 'model'}")
    known = answered_right(data / "exam.jsonl", _exact(out, "grpo", "exact"))
    if known:
        console.say(f"Two that it has not seen in training and answers right: {'   '.join(known)}")
    for line in failed:
        console.say(f"not improved: {line}", "bold red")
    for line in lost:
        console.say(f"made worse: {line}", "bold red")
    return 1 if failed or lost else 0


def _quicker() -> list[str]:
    """What --quick changes: fewer steps everywhere."""
    return [
        "pretrain.num_train_epochs=2",
        "sft.num_train_epochs=6",
        "reward.num_train_epochs=3",
        "ppo.max_steps=6",
        "grpo.max_steps=6",
    ]


def _row(out: Path, name: str) -> dict[str, Any]:
    summary = yaml.safe_load((out / name / "summary.json").read_text("utf-8"))
    held_out = summary["held_out"]
    return {
        **held_out,
        "name": name,
        "name_of_number": held_out["name"],
        "seconds": summary["seconds"],
        "summary": summary,
    }


def _exam(out: Path, name: str) -> dict[str, Any]:
    results = yaml.safe_load((out / f"exam_{name}" / "results.json").read_text("utf-8"))
    scores: dict[str, Any] = {}
    for way, task in WAYS.items():
        metrics = results["tasks"][task]["metrics"]
        scores[way] = (metrics["exact_match"], metrics["exact_match_stderr"])
    return scores


def _exact(out: Path, name: str, way: str) -> dict[str, float]:
    """The share of answers to each question that are exactly right, by its id."""
    return numbers_by_question(out / f"exam_{name}" / f"{WAYS[way]}.jsonl", "exact_match")


def answered_right(exam: Path, right: Mapping[str, float]) -> list[str]:
    """The first question in Chinese and the first in English that a model has answered exactly right.

    Args:
        exam: the questions, JSON lines with ``id`` and ``question``.
        right: 1 or 0 for each, by its id.
    """
    found: dict[bool, str] = {}
    for line in exam.read_text("utf-8").splitlines():
        row = json.loads(line)
        if right.get(row["id"]) == 1:
            found.setdefault(row["id"].startswith("en"), row["question"])
    return [found[english] for english in (False, True) if english in found]


def change(sft: Mapping[str, float], after: Mapping[str, float]) -> Difference:
    """By how much more of the answers are exactly right than after SFT, paired by question.

    Args:
        sft, after: the share of each question's answers, by its id.

    Raises:
        UserError: not the same questions.
    """
    if sft.keys() != after.keys() or len(sft) < 2:
        raise UserError(
            f"the exams of the demo asked other questions ({len(sft)} and {len(after)}); run the demo in a new folder."
        )
    return paired_difference(list(sft.values()), [after[question] for question in sft])


def below(name: str, found: Difference) -> str | None:
    """A sentence where a stage unlearned what SFT had taught: by more than 2 standard errors."""
    if found.value >= -2 * found.stderr:
        return None
    return (
        f"{name}: {found.value:+.1%} ± {found.stderr:.1%} of {found.n} held-out questions answered exactly right, against "
        "sft, paired by question"
    )


def _show_exams(
    console: Screen, exams: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Mapping[str, Difference]]
) -> None:
    table = _table("Answers exactly right, and against sft, paired by question")
    table.add_column("stage")
    for way in WAYS:
        table.add_column(way, justify="right", no_wrap=True)
        table.add_column("against sft", justify="right", no_wrap=True)
    for name, exam in exams.items():
        cells = []
        for way in WAYS:
            found = changes.get(name, {}).get(way)
            cells.append(_percent(exam.get(way)))
            cells.append("" if found is None else f"{found.value:+.1%}±{found.stderr:.1%}")
        table.add_row(name, *cells)
    console.print(table)
    console.print("exact: the likeliest answer; sampled: four answers by chance, at temperature 1.")


def _show(console: Screen, rows: list[dict[str, Any]]) -> None:
    table = _table("What each stage did, on data that it has not seen")
    for column in ("stage", "number (n)", "before", "after", "saved", "s"):
        table.add_column(
            column, justify="left" if column in ("stage", "number (n)") else "right", no_wrap=True
        )
    for row in rows:
        summary = row["summary"]
        saved = 1 - summary["tokens_in_rows"] / max(1, summary["tokens_in_paths"])
        table.add_row(
            row["name"],
            f"{row['name_of_number']} {'↑' if row['better'] == 'higher' else '↓'} ({row['n']})",
            f"{row['before']:.2f}±{row['stderr_before']:.2f}",
            f"{row['after']:.2f}±{row['stderr_after']:.2f}",
            f"{saved:.0%}",
            f"{row['seconds']:.0f}",
        )
    console.print(table)
    console.print("↑ higher is better, ↓ lower is; saved: tokens shared, not computed.")


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE, padding=(0, 1), pad_edge=False)


def _percent(value: tuple[float, float] | None) -> str:
    return "-" if value is None else f"{value[0]:.0%}±{value[1]:.0%}"


def _failures(rows: list[dict[str, Any]], exams: dict[str, dict[str, Any]], quick: bool) -> list[str]:
    failures = []
    for row in rows:
        if quick and row["name"] not in MUST_IMPROVE_QUICK:
            continue
        gain = row["after"] - row["before"]
        if (gain if row["better"] == "higher" else -gain) <= 0:
            failures.append(
                f"{row['name']}: {row['name_of_number']} {row['before']:.3f} -> {row['after']:.3f}"
            )
        if row["name"] == "reward" and not quick and row["after"] < REWARD_ACCURACY:
            failures.append(f"reward: accuracy {row['after']:.3f} on unseen pairs, wanted {REWARD_ACCURACY}")
    if exams["sft"]["exact"][0] <= exams["pretrain"]["exact"][0]:
        failures.append("sft: exact match is not above that of the pretrained model")
    return failures
