"""The report says what the files say, escapes them, loads nothing, and survives a run that was cut off."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import UserError
from espalier.report.page import write_report
from espalier.report.plots import HEIGHT, WIDTH, chart, number, show, show_estimate, show_seconds, thin, ticks

CONFIG = """\
output_dir: runs/demo
seed: 7
template: espalier
stages:
  - {name: pretrain, stage: pretrain, max_steps: 400, learning_rate: 0.003}
  - {name: sft, stage: sft, model_name_or_path: run:pretrain, max_steps: 300}
  - {name: reward, stage: reward, model_name_or_path: run:sft}
  - {name: ppo, stage: ppo, model_name_or_path: run:sft, reward_model: run:reward}
  - {name: dpo, stage: dpo, model_name_or_path: run:sft}
  - {name: grpo, stage: grpo, model_name_or_path: run:sft}
"""
HELD_OUT = {
    "pretrain": ("perplexity", 812.4, 6.31, 20.1, 0.11, 400, "lower"),
    "sft": ("exact_match", 0.0, 0.715, 0.0, 0.032, 200, "higher"),
    "reward": ("accuracy", 0.52, 0.965, 0.035, 0.013, 200, "higher"),
    "ppo": ("exact_match", 0.715, 0.81, 0.032, 0.028, 200, "higher"),
    "dpo": ("exact_match", 0.715, 0.735, 0.032, 0.031, 200, "higher"),
    "grpo": ("exact_match", 0.715, 0.87, 0.032, 0.024, 200, "higher"),
}
OWN = {"reward": ["accuracy", "margin"], "ppo": ["reward", "kl", "clip_fraction"], "grpo": ["reward", "kl"]}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_stage(folder: Path, name: str, steps: int) -> None:
    folder.mkdir()
    luck = random.Random(name)
    rows: list[dict[str, Any]] = []
    for step in range(5, steps + 1, 5):
        fall = math.exp(-4 * step / steps)
        row = {
            "step": step,
            "epoch": step / 100,
            "tokens": step * 4096,
            "loss": 0.4 + 5 * fall + luck.gauss(0, 0.08),
            "learning_rate": 3e-3 * (1 - step / steps),
            "grad_norm": 0.5 + fall + abs(luck.gauss(0, 0.2)),
            "tokens_per_second": 21000 + luck.gauss(0, 800),
            "memory_bytes": 1.1e9 + step * 1e4,
        }
        row |= {own: (1 - fall) * 0.9 + luck.gauss(0, 0.03) for own in OWN.get(name, [])}
        rows.append(row)
        if step % 50 == 0:
            rows.append({"step": step, "eval_loss": 0.5 + 5 * fall, "eval_accuracy": 0.9 * (1 - fall)})
    write_lines(folder / "metrics.jsonl", rows)
    measure, before, after, stderr_before, stderr_after, n, better = HELD_OUT[name]
    summary = {
        "stage": name,
        "status": "done",
        "steps": steps,
        "seconds": 20.0 + steps / 9,
        "device": "cpu, 2 cores",
        "versions": {"espalier": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"},
        "seed": 7,
        "data": {f"data/{name}_train.jsonl": "9f2c" * 16},
        "layout": "tree",
        "layout_reason": "the probe agreed to 2e-6",
        "tokens_in_paths": 400000 if name == "pretrain" else 640000,
        "tokens_in_rows": 400000 if name == "pretrain" else 402345,
        "held_out": {
            "name": measure,
            "before": before,
            "after": after,
            "stderr_before": stderr_before,
            "stderr_after": stderr_after,
            "n": n,
            "better": better,
        },
        "final": {"loss": rows[-2]["loss"], "tokens_per_second": 21034.2, "note": "text is left out"},
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    if name in ("sft", "grpo"):
        asked = [("3 加 4 等于几?", "答案是7。"), ("What day comes after Monday?", "The answer is Tuesday.")]
        asked += [("把“春天”倒过来写。", "答案是天春。"), ("Which is larger, 12 or 9?", "The answer is 12.")]
        write_lines(
            folder / "samples.jsonl",
            [
                {"step": step, "prompt": prompt, "completion": said, "reference": right, "reward": reward}
                for prompt, right in asked
                for step, said, reward in ((0, "3 3 3 加 the day", 0.0), (steps, right, 1.0))
            ],
        )


def make_run(run: Path) -> Path:
    """A realistic run folder: six stages, four exams."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG, encoding="utf-8")
    for i, name in enumerate(HELD_OUT):
        make_stage(run / name, name, 400 - 40 * i)
    for i, exam in enumerate(["exam-pretrain", "exam-sft", "exam-ppo", "exam-grpo"]):
        (run / exam).mkdir()
        task = {
            "n": 200,
            "shots": 0,
            "metrics": {"accuracy": 0.31 + 0.15 * i, "accuracy_stderr": 0.033},
            "seconds": 2.5,
            "tokens_computed": 9000,
            "tokens_unshared": 21000,
        }
        match = {
            "n": 200,
            "shots": 2,
            "metrics": {"exact_match": 0.2 * i, "exact_match_stderr": 0.03},
            "seconds": 6,
        }
        results = {
            "model": f"runs/demo/{exam[5:]}/model",
            "layout": "tree",
            "tasks": {"demo": task, "demo_say": match},
        }
        (run / exam / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = make_run(tmp_path_factory.mktemp("runs") / "demo")
    path = write_report(run)
    assert path == run / "report.html"
    assert sorted(p.name for p in run.iterdir() if p.is_file()) == ["config.yaml", "report.html"]
    return path.read_text(encoding="utf-8")


class Parts(HTMLParser):
    """Collects tags, their attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "circle", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def test_everything_that_was_asked_for_is_there(page: str) -> None:
    text = " ".join(Parts(page).text.split())
    for stage in HELD_OUT:
        assert stage in text
    for wanted in (
        "6 of 6 stages done",
        "0.715 ± 0.032",
        "答案是7。",
        "3 3 3 加 the day",
        "cpu, 2 cores",
        "2.13.0",
        "37.1 % saved",
        "nothing shared",
        "learning_rate: 0.003",
        "0.760 ± 0.033",
        "n = 200",
        "data/sft_train.jsonl",
        "the probe agreed to 2e-6",
    ):
        assert wanted in text, wanted
    assert "text is left out" not in text


def test_verdicts_weigh_the_change_against_its_error(page: str) -> None:
    rows = re.findall(
        r"<tr>\s*<td class=\"name\"><b>(\w+)</b>.*?td class=\"verdict ([^\"]*?)\"", page, re.DOTALL
    )
    assert dict(rows) == {
        "pretrain": "better",  # perplexity fell, and lower is better
        "sft": "better",
        "reward": "better",
        "ppo": "better",
        "dpo": "within noise soft",
        "grpo": "better",
    }


def test_the_page_loads_nothing(page: str) -> None:
    parts = Parts(page)
    loading = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"}
    assert not [(tag, attrs) for tag, attrs in parts.tags if loading & set(attrs)]
    assert not {tag for tag, _ in parts.tags} & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert "http" not in page.replace("http-equiv", "")
    assert "url(" not in page and "@import" not in page
    assert parts.open == []


def test_curves_stay_in_their_box_and_each_number_has_one(page: str) -> None:
    parts = Parts(page)
    charts = page.count("<figure")
    assert charts == sum(1 for tag, _ in parts.tags if tag == "svg") > 6 * 5
    for tag, attrs in parts.tags:
        if tag == "circle":
            assert 0 <= float(attrs["cx"] or -1) <= WIDTH and 0 <= float(attrs["cy"] or -1) <= HEIGHT


@pytest.mark.parametrize("place", ["prompt", "completion", "reference"])
def test_text_of_a_model_cannot_become_markup(tmp_path: Path, place: str) -> None:
    stage = tmp_path / "run" / "sft"
    stage.mkdir(parents=True)
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    write_lines(stage / "samples.jsonl", [{"step": 0, "prompt": "p", "completion": "c", place: evil}])
    (tmp_path / "run" / "config.yaml").write_text(f"output_dir: '{evil.replace(chr(39), '')}'\n")
    (stage / "summary.json").write_text(json.dumps({"status": evil, "device": evil, "data": {evil: evil}}))
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    parts = Parts(page)
    assert not {tag for tag, _ in parts.tags} & {"script", "img"}
    assert evil in parts.text


def test_an_interrupted_run_is_reported_without_its_half_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "sft").mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG)
    (run / "sft" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 3.25}\n{"step": 2, "loss": 2.5}\n{"step": 3, "lo'
    )
    text = " ".join(Parts(write_report(run).read_text(encoding="utf-8")).text.split())
    assert "2.5" in text and "unfinished" in text and "not readable" not in text
    assert "grpo waiting" in text


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stage in ("a", "b"):
        (run / stage).mkdir(parents=True)
    (run / "a" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1}\n{oops}\n[1]\n{"step": 2, "loss": NaN}\n'
    )
    (run / "b" / "summary.json").write_text('{\n"status": "done",')
    (run / "config.yaml").write_text("a: [1\n")
    text = Parts(write_report(run).read_text(encoding="utf-8")).text
    assert "a/metrics.jsonl:2: 2 lines not readable" in text
    assert "b/summary.json:2 is not readable JSON" in text
    assert "config.yaml is not readable YAML" in text and "a: [1" in text


def test_stages_come_in_the_order_of_the_pipeline(page: str) -> None:
    places = [page.index(f'<td class="name"><b>{name}</b>') for name in HELD_OUT]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "strange", [{"tasks": []}, {"tasks": {"t": 3}}, {"tasks": {"t": {"metrics": {"m": "high"}}}}]
)
def test_strange_results_do_not_stop_the_report(tmp_path: Path, strange: dict[str, Any]) -> None:
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "results.json").write_text(json.dumps(strange))
    assert write_report(tmp_path).is_file()


def test_a_folder_that_is_no_run_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Give that folder, or start the run first"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        write_report(tmp_path / "nowhere")


def test_an_older_page_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    (run / "report.html").write_text("older")

    def full(self: Path, *args: Any, **kwargs: Any) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(UserError, match=r"report.html: could not be written .No space.*Make room"):
            write_report(run)
    assert (run / "report.html").read_text() == "older"
    assert not list(run.glob(".report*"))


def test_thinning_keeps_the_newest_point_and_the_shape() -> None:
    points = [(float(i), float(i)) for i in range(1001)]
    thinned = thin(points, 100)
    assert len(thinned) <= 101 and thinned[-1] == (1000.0, 1000.0)
    assert all(x == pytest.approx(y) for x, y in thinned)
    assert thin(points[:50], 100) == points[:50]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.2, 7.9), (1e-5, 3e-3), (2.0, 2.1), (0.0, 123456.0)]
)
def test_ticks_are_round_and_span_the_data(low: float, high: float) -> None:
    marks = ticks(low, high, 4)
    assert 3 <= len(marks) <= 7
    assert marks[0] <= low + 1e-9 and marks[-1] >= high - 1e-9


def test_a_flat_or_single_point_curve_is_drawn() -> None:
    for points in ([(5.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)]):
        drawn = chart("loss", [("training", points)])
        assert drawn is not None and all(math.isfinite(v) for x, y, _ in drawn.lines[0].dots for v in (x, y))
    assert chart("loss", [("training", [])]) is None


def test_numbers_as_people_read_them() -> None:
    assert [show(v) for v in (0.123456, 7.0, 1234567.0, 0.0000123, None)] == [
        "0.1235",
        "7",
        "1,234,567",
        "1.23e-5",
        "–",
    ]
    assert show(2.5e9, "memory_bytes") == "2.5 GB"
    assert show_estimate(812.41, 20.1) == ("812", "20") and show_estimate(0.7, None) == ("0.7", "")
    assert show_estimate(0.0, 0.0) == ("0", "0") and show_estimate(None, None) == ("–", "")
    assert [show_seconds(v) for v in (3.21, 75.3, 7260.0)] == ["3.2 s", "1 min 15 s", "2 h 01 min"]
    assert [number(v) for v in (1, True, "1", float("nan"), None)] == [1.0, None, None, None, None]


def test_a_judge_s_numbers_stand_on_the_page(tmp_path: Path) -> None:
    from espalier.exam.numbers.wins import wins

    values = [1.0, 0.5, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    pair = {"task": "generation:a", "a": "runs/old", "b": "runs/new", **wins(values, [0] * 10)}
    rows = [
        pair | {"order_decided": 1, "unreadable": 2, "unanswered": 0},
        {
            "task": "generation:b",
            "a": "x",
            "b": "<y>",
            "n": 0,
            "order_decided": 0,
            "unreadable": 3,
            "unanswered": 0,
        },
    ]
    (tmp_path / "exam" / "0").mkdir(parents=True)
    (tmp_path / "exam" / "judge.json").write_text(json.dumps({"judge": "m-7b", "pairs": rows}), "utf-8")
    (tmp_path / "exam" / "0" / "results.json").write_text(
        json.dumps({"model": "runs/old", "tasks": {}}), "utf-8"
    )
    text = write_report(tmp_path).read_text("utf-8")
    assert "judged by</span> m-7b" in text and "runs/new against runs/old" in text
    assert f"{pair['win_rate']:.3f} ± {pair['stderr']:.3f}" in text and "0.850" in text
    assert "8, 1, 1" in text and "runs/new is better" in text
    assert "1 ties by the order alone, 2 without a verdict" in text
    assert "&lt;y&gt; against x" in text and "no difference beyond noise" in text and "<y>" not in text
