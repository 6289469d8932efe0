"""Means that do not depend on the split, rows that survive a stop, and silence where nobody should speak."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from espalier.engine import track
from espalier.engine.progress import clock, in_words
from espalier.engine.track import Meter, Tracker, keep_rows
from espalier.engine.trackers import TrackedRun, open_trackers
from espalier.errors import UserError
from espalier.screen import Screen


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(track, "time", clock)
    return clock


def screen(terminal: bool = False, width: int = 200) -> Screen:
    return Screen(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def shown(console: Screen) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def last_line(tracker: Tracker) -> str:
    """What the live line says now (the terminal itself is drawn four times a second)."""
    live = tracker._line._live
    assert live is not None
    return str(live.tasks[0].fields["text"])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


# --- Meter ------------------------------------------------------------------------------------------------------


def test_means_do_not_depend_on_the_split() -> None:
    losses = torch.rand(24, dtype=torch.float64)
    whole = losses.mean().item()
    for size in (1, 5, 24):
        meter = Meter()
        for part in losses.split(size):
            meter.add({"loss": (part.sum(), torch.tensor(len(part))), "rows": (1.0, 0.0)})
        means = meter.means()
        assert math.isclose(means["loss"], whole, rel_tol=1e-12)
        assert set(means) == {"loss"}, "a number without weight has no mean"
    assert meter.means() == {}, "reading empties"


def test_ranks_together_are_one_rank() -> None:
    """Two threads stand for two ranks; rank 1 has no pair in this step, and no other count of tokens."""
    barrier, given, results = threading.Barrier(2), {}, {}

    def rank(number: int, numbers: dict[str, tuple[Any, Any]]) -> None:
        def reduce(values: list[float]) -> list[float]:
            given[number] = values
            barrier.wait()
            total = [a + b for a, b in zip(given[0], given[1], strict=True)]
            barrier.wait()
            return total

        meter = Meter()
        meter.add(numbers)
        results[number] = meter.means(reduce)

    parts = [{"loss": (6.0, 3), "accuracy": (1.0, 2)}, {"accuracy": (0.0, 0), "loss": (torch.tensor(2.0), 1)}]
    threads = [threading.Thread(target=rank, args=(number, part)) for number, part in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == {"accuracy": 0.5, "loss": 2.0}


def test_ranks_that_measure_different_numbers_are_found() -> None:
    meter = Meter()
    meter.add({"loss": (1.0, 1), "kl": (1.0, 1)})
    with pytest.raises(AssertionError, match="ranks measured different numbers"):
        meter.means(lambda values: [2.0, values[1] + 1] if len(values) == 2 else values)


def test_a_micro_batch_that_does_not_count_still_names_its_numbers() -> None:
    meter, seen = Meter(), list[list[float]]()

    def reduce(values: list[float]) -> list[float]:
        seen.append(values)
        return values

    meter.add({"loss": (math.nan, math.nan)}, counts=False)
    assert meter.means(reduce) == {}
    assert meter.means(reduce) == {}, "and keeps the name at the next reading"
    meter.add({"loss": (4.0, 2)})
    meter.add({"loss": (math.nan, 5)}, counts=False)
    assert meter.means(reduce) == {"loss": 2.0}
    assert len({values[1] for values in seen[0::2]}) == 1 and seen[1::2] == [
        [0.0, 0.0],
        [0.0, 0.0],
        [4.0, 2.0],
    ]


def test_many_small_float32_sums_keep_their_digits() -> None:
    meter = Meter()
    for _ in range(1000):
        meter.add({"loss": (torch.tensor(1e-3), 1), "big": (torch.tensor(2.0**24), 1)})
    meter.add({"big": (torch.tensor(1.0), 0)})
    means = meter.means()
    assert math.isclose(means["loss"], float(torch.tensor(1e-3)), rel_tol=1e-12)
    assert means["big"] == 2.0**24 + 1e-3


def test_a_meter_keeps_no_graph() -> None:
    weight = torch.ones(1, requires_grad=True)
    meter = Meter()
    meter.add({"loss": (weight.sum() * 3, 1)})
    kept = meter._sums["loss"][0]
    assert isinstance(kept, torch.Tensor) and not kept.requires_grad
    assert meter.means() == {"loss": 3.0}


# --- Tracker ----------------------------------------------------------------------------------------------------


def test_a_row_is_written_as_it_is(tmp_path: Path) -> None:
    row = {"step": 5, "epoch": 0.25, "tokens": 1000, "loss": 2.5, "grad_norm": math.inf, "奖励": 1.0}
    with Tracker(tmp_path / "new" / "sft", "sft", 20, console=screen()) as tracker:
        tracker.log(row)
        tracker.log({"step": 5, "eval_loss": math.nan})
    assert rows(tmp_path / "new" / "sft") == [{**row, "grad_norm": None}, {"step": 5, "eval_loss": None}]


def test_a_log_gets_plain_lines_with_the_time_left(tmp_path: Path, time: Clock) -> None:
    console = screen()
    with Tracker(tmp_path, "sft", 20, console=console, resumed_step=4) as tracker:
        time.now += 6
        tracker.step(5)
        tracker.log(
            {
                "step": 6,
                "epoch": 0.1,
                "tokens": 9,
                "loss": 2.3456,
                "kl": math.nan,
                "tokens_per_second": 2000.4,
            }
        )
        tracker.log({"step": 6, "eval_loss": 2.0})
        tracker.say(6, "[a] checkpoint")
    assert shown(console).splitlines() == [
        "sft 6/20 loss 2.346  kl not finite  tokens_per_second 2,000  0:00:42 left",
        "sft 6/20 eval_loss 2",
        "sft 6/20 [a] checkpoint",
    ]


def test_a_terminal_gets_one_live_line(tmp_path: Path, time: Clock) -> None:
    console = screen(terminal=True)
    with Tracker(tmp_path, "sft", 20, console=console) as tracker:
        time.now += 2
        tracker.log({"step": 2, "loss": 1.5, "tokens_per_second": 200.0, "kl": 1.0})
        assert last_line(tracker) == "2/20 loss 1.5  tokens_per_second 200  0:00:18 left"
        time.now += 1
        tracker.step(3)
        assert last_line(tracker) == "3/20 loss 1.5  tokens_per_second 200  0:00:17 left"
    assert shown(console).count("\n") <= 2, "nothing scrolls"
    assert "3/20 loss 1.5" in shown(console)


def test_a_feed_without_an_end_has_no_time_left(tmp_path: Path) -> None:
    console = screen()
    with Tracker(tmp_path, "rl", None, console=console) as tracker:
        tracker.log({"step": 3, "loss": 1.0, "tokens_per_second": 1.0})
    assert shown(console) == "rl 3 loss 1  tokens_per_second 1\n"


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    console = screen(terminal=True)
    with Tracker(
        tmp_path / "rank1",
        "sft",
        5,
        partial(open_trackers, ["tensorboard"], TrackedRun(tmp_path, "x")),
        False,
        console=console,
    ) as tracker:
        tracker.step(1)
        tracker.log({"step": 1, "loss": 1.0})
        tracker.say(1, "hello")
    assert shown(console) == "" and not (tmp_path / "rank1").exists()


def test_a_continued_run_forgets_what_comes_after_its_checkpoint(tmp_path: Path) -> None:
    def write(start: int, stop: int) -> None:
        with Tracker(tmp_path, "sft", 9, resumed_step=start, console=screen()) as tracker:
            for step in range(start + 1, stop + 1):
                tracker.log({"step": step, "loss": 1.0 / step})

    write(0, 5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    write(3, 7)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    write(0, 2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_cutting_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(UserError, match="Make room"):
        keep_rows(path, 1)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_row_that_the_disk_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    tracker = object.__new__(Tracker)
    tracker._path, tracker._sinks = tmp_path / "metrics.jsonl", []
    with pytest.raises(UserError, match=r"metrics\.jsonl: could not be written .*Make room"):
        tracker._write({"step": 1})


# --- trackers ---------------------------------------------------------------------------------------------------


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, stop in ((0, 4), (2, 6)):
        run = TrackedRun(tmp_path, "mine", options={"learning_rate": 0.5}, resumed_step=start)
        opens = partial(open_trackers, ["tensorboard"], run)
        with Tracker(tmp_path, "sft", 6, opens, resumed_step=start, console=screen()) as tracker:
            for step in range(start + 1, stop + 1):
                tracker.log({"step": step, "loss": step + start / 10, "bad": math.nan})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "bad" not in events.Tags()["scalars"]
    seen = [(event.step, round(event.value, 3)) for event in events.Scalars("loss")]
    assert seen == [(1, 1.0), (2, 2.0), (3, 3.2), (4, 4.2), (5, 5.2), (6, 6.2)]
    assert (
        b"| learning_rate | `0.5` |" in events.Tensors("options/text_summary")[0].tensor_proto.string_val[0]
    )


@pytest.mark.parametrize("kind", ["wandb", "swanlab", "tensorboard", "trackio"])
def test_a_missing_package_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if kind == "tensorboard" else kind, None)
    with pytest.raises(UserError, match=rf"pip install 'espalier-llm\[{kind}\]'"):
        open_trackers([kind], TrackedRun(tmp_path, "sft"))
    with pytest.raises(UserError, match="wanted some of tensorboard, wandb, swanlab"):
        open_trackers(["weights"], TrackedRun(tmp_path, "sft"))


class Service:
    """Stands for wandb, swanlab and trackio: remembers how it was called."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = False

    def init(self, **options: Any) -> SimpleNamespace:
        self.options = options
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((numbers, step))

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize(
    ("kind", "key", "with_key"),
    [
        ("wandb", "WANDB_API_KEY", "online"),
        ("swanlab", "SWANLAB_API_KEY", None),
        ("trackio", "HF_TOKEN", None),
    ],
)
def test_a_service_never_asks_for_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, key: str, with_key: str | None
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in (key, "WANDB_MODE", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    modes = []
    for _ in range(2):
        service = Service()
        monkeypatch.setitem(sys.modules, kind, service)
        run = TrackedRun(tmp_path, "mine", None, {"learning_rate": 0.5})
        with Tracker(tmp_path, "sft", 1, partial(open_trackers, [kind], run), console=screen()) as tracker:
            tracker.log({"step": 1, "loss": 1.0})
        modes.append(service.options.get("mode"))
        assert service.options["project"] == "espalier" and service.options["config"] == {
            "learning_rate": 0.5
        }
        (numbers, step), *others = service.logged
        assert step == 1 and numbers == {"loss": 1.0} and not others and service.finished
        monkeypatch.setenv(key, "secret")
    assert modes == ["offline" if kind != "trackio" else None, with_key]


def test_a_project_is_what_was_asked_for_else_what_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = TrackedRun(Path("runs/sft"), "sft")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert run.project_of("WANDB_PROJECT") == "espalier"
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert run.project_of("WANDB_PROJECT") == "theirs"
    assert replace(run, project="mine").project_of("WANDB_PROJECT") == "mine"


@pytest.mark.slow
def test_nothing_is_imported_that_was_not_asked_for() -> None:
    code = (
        "import sys, espalier.engine.track; "
        "sys.exit(bool({'tensorboard', 'torch.utils.tensorboard', 'wandb', 'swanlab'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- words ------------------------------------------------------------------------------------------------------


def test_numbers_and_times_in_words() -> None:
    row = {
        "step": 1,
        "loss": 0.123456,
        "kl": -2.0,
        "tokens_per_second": 12345.6,
        "grad_norm": None,
        "memory_bytes": 5,
    }
    assert in_words(row) == "loss 0.1235  kl -2  tokens_per_second 12,346  grad_norm not finite"
    held_out = {
        "step": 3,
        "eval_loss": 0.5,
        "eval_loss_stderr": 0.01234,
        "eval_kl": 1.0,
        "lonely_stderr": 2.0,
    }
    assert in_words(held_out) == "eval_loss 0.5 ± 0.012  eval_kl 1  lonely_stderr 2"
    assert [clock(seconds) for seconds in (-1, 0, 65, 3600 * 30 + 61)] == [
        "0:00:00",
        "0:00:00",
        "0:01:05",
        "30:01:01",
    ]
