"""What an earlier start has left: skipped, gone on with, run again or refused, and never lost without being asked."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier import config
from espalier.engine import checkpoint, files
from espalier.errors import UserError
from espalier.runs import pipeline, results
from tests.stages.conftest import far, rows, run, weights

Make = Callable[..., dict[str, Any]]


def folder_of(chosen: dict[str, Any]) -> Path:
    return Path(chosen["output_dir"]) / chosen.get("name", chosen["stage"])


def status(chosen: dict[str, Any]) -> str:
    return str(json.loads((folder_of(chosen) / "summary.json").read_text("utf-8"))["status"])


def killed(chosen: dict[str, Any], patch: Callable[[], None]) -> None:
    """The run in a forked process, in which `patch` sees to it that SIGKILL comes at some place."""
    child = os.fork()
    if not child:
        try:
            patch()
            run(chosen)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def stopped(chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ended, by an accident, between its last checkpoint and its models."""

    def accident(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("espalier.runs.train.finish", accident)
        with pytest.raises(KeyboardInterrupt):
            run(chosen)


@pytest.fixture
def own(options: Make, world: Path, tmp_path: Path) -> Make:
    """Options of an SFT run of three steps over a base and data that a test may change."""
    shutil.copytree(world / "base", tmp_path / "base")
    shutil.copy(world / "sft_train.jsonl", tmp_path / "data.jsonl")

    def make(**changes: Any) -> dict[str, Any]:
        paths = {"model_name_or_path": str(tmp_path / "base"), "dataset": [str(tmp_path / "data.jsonl")]}
        return options("sft", **{**paths, "max_steps": 3, "precision": "fp32", "save_steps": 1, **changes})

    return make


def other_records(tmp_path: Path) -> None:
    """As many as before, every one another."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(reversed(path.read_text("utf-8").splitlines())) + "\n", "utf-8")


def other_weights(tmp_path: Path) -> None:
    file = tmp_path / "base" / "model.safetensors"
    tensors = files.read_safetensors(file)
    files.write_safetensors(file, {name: t + 0.01 for name, t in tensors.items()}, {"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("change", [other_records, other_weights])
def test_a_finished_run_of_other_content_runs_again_and_says_why(
    change: Callable[[Path], None], own: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = own()
    run(chosen)
    change(tmp_path)
    again = run(chosen)
    key = "dataset" if change is other_records else "model_name_or_path"
    assert (
        f"sft: runs again, for what it was made from has changed:\n  {key}: the content of"
        in capsys.readouterr().err
    )
    fresh = own(name="fresh")
    run(fresh)
    assert far(weights(chosen), weights(fresh)) == 0.0
    assert any("has changed" in note for note in again["notes"])
    assert run(chosen) == again, "and is finished then"


@pytest.mark.slow
@pytest.mark.parametrize("change", [other_records, other_weights])
def test_an_interrupted_run_of_other_content_is_refused_by_name(
    change: Callable[[Path], None], own: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = own()
    stopped(chosen, monkeypatch)
    before = sorted(p.name for p in folder_of(chosen).rglob("*"))
    change(tmp_path)
    key, file = (
        ("dataset", "data.jsonl") if change is other_records else ("model_name_or_path", "model.safetensors")
    )
    with pytest.raises(
        UserError, match=rf"(?s)step-2: .*{key}: the content of .*{file} has changed .*resume=false"
    ):
        run(chosen)
    assert sorted(p.name for p in folder_of(chosen).rglob("*")) == before
    assert run({**chosen, "resume": False})["status"] == "done"


@pytest.mark.slow
def test_a_run_that_was_overwritten_halfway_keeps_its_old_model_until_the_new_one_is_whole(
    own: Make, tmp_path: Path
) -> None:
    chosen = own(save_steps=0)
    run(chosen)
    old = weights(chosen)
    other_weights(tmp_path)
    killed(chosen, lambda: setattr(results, "save_model", die))
    assert far(weights(chosen), old) == 0.0 and status(chosen) == "running"
    run(chosen)
    assert far(weights(chosen), old) > 0 and status(chosen) == "done"
    assert not [p for p in folder_of(chosen).iterdir() if p.name.startswith(".")], (
        "the dead one's half model is gone"
    )


def test_other_options_never_replace_a_model(own: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = own(save_steps=0)
    run(chosen)
    before = (folder_of(chosen) / "metrics.jsonl").read_text("utf-8")
    for changes, said in (
        ({"learning_rate": 2e-3}, "learning_rate: 0.001 -> 0.002"),
        ({"max_steps": 5}, "max_steps: 3 -> 5"),
    ):
        with pytest.raises(
            UserError, match=rf"(?s)sft: is finished.*{said}.*resume=false.*another output_dir"
        ):
            run({**chosen, **changes})
    (folder_of(chosen) / "summary.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match="holds a model, and no note of its options"):
        run(chosen)
    assert (folder_of(chosen) / "metrics.jsonl").read_text("utf-8") == before and weights(chosen)


@pytest.mark.slow
def test_keys_that_change_no_result_let_a_run_go_on(own: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = own()
    stopped(chosen, monkeypatch)
    whole = own(name="whole")
    run(whole)
    free = {"eval_steps": 1, "samples": 0, "logging_steps": 2, "save_steps": 2, "strategy": "single", "num_processes": 1,
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}  # fmt: skip
    again = run({**chosen, **free})
    assert any("continuing from step 2" in note for note in again["notes"])
    assert far(weights(chosen), weights(whole)) < 5e-5
    assert run({**chosen, "samples": 3}) == again


def test_a_missing_tracker_is_said_before_anything_is_touched(
    own: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = own(save_steps=0)
    first = run(chosen)
    before = {p: p.stat().st_mtime_ns for p in folder_of(chosen).rglob("*")}
    monkeypatch.setitem(__import__("sys").modules, "swanlab", None)
    with pytest.raises(UserError, match="report_to: swanlab"):
        run({**chosen, "report_to": ["swanlab"], "resume": False})
    assert {p: p.stat().st_mtime_ns for p in folder_of(chosen).rglob("*")} == before and run(chosen) == first


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("place", ["before the model", "before the summary", "before the checkpoints go"])
def test_a_kill_at_the_end_loses_no_step(
    place: str, own: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, chosen = own(name="whole"), own()
    run(whole)
    real = results.write_summary

    def patch() -> None:
        if place == "before the model":
            results.save_model = die  # type: ignore[assignment]
        elif place == "before the summary":
            results.write_summary = lambda running, said: die()
        else:
            checkpoint.clear_checkpoints = die  # type: ignore[assignment]

    killed(chosen, patch)
    assert results.write_summary is real, "only the child was patched"
    assert sorted(p.name for p in (folder_of(chosen) / "checkpoints").glob("step-*")) == ["step-1", "step-2"]
    capsys.readouterr()
    assert run(chosen)["status"] == "done"
    said = capsys.readouterr().err
    assert ("done already" if place == "before the checkpoints go" else "continuing from step 2") in said
    assert far(weights(whole), weights(chosen)) == 0.0
    assert not list((folder_of(chosen) / "checkpoints").iterdir())


@pytest.mark.slow
def test_done_without_a_whole_model_is_not_done(options: Make, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = options("ppo", max_steps=2, precision="fp32")
    run(chosen)
    whole, critic = weights(chosen), weights(chosen, "critic")
    folder = folder_of(chosen)

    def cut(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-8])

    for harm, said in (
        (lambda: (folder / "model" / "model.safetensors").unlink(), "model/model.safetensors is missing"),
        (lambda: cut(folder / "critic" / "model.safetensors"), "critic/model.safetensors has"),
        (lambda: shutil.rmtree(folder / "model"), "its folder model is missing"),
    ):
        harm()
        capsys.readouterr()
        assert run(chosen)["status"] == "done"
        assert f"was finished, but {said}" in capsys.readouterr().err.replace("\n", " ")
        assert far(weights(chosen), whole) == 0.0 and far(weights(chosen, "critic"), critic) == 0.0


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(file: Path, place: int | None = None) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 0x40
    file.write_bytes(content)


HARM: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit of the model": (lambda p: flip(p / "model.safetensors"), "model.safetensors is damaged"),
    "a bit of the optimiser": (
        lambda p: flip(p / "optimizer.safetensors"),
        "optimizer.safetensors is damaged",
    ),
    "a bit of a header": (lambda p: flip(p / "model.safetensors", 20), "model.safetensors is damaged"),
    "a digit of the state": (
        lambda p: (p / "state.json").write_text(
            (p / "state.json").read_text().replace('"step": 2', '"step": 1')
        ),
        "state.json is damaged",
    ),
    "a list for a state": (lambda p: (p / "state.json").write_text("[]"), "state.json is damaged"),
    "bytes for a state": (lambda p: (p / "state.json").write_bytes(b"\xff{}"), "state.json is damaged"),
    "no state": (lambda p: (p / "state.json").unlink(), "state.json is missing"),
    "a file": (lambda p: (shutil.rmtree(p), p.write_text("x")), "it is no folder"),
}


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_aloud_and_never_for_0(
    own: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, source = own(name="whole"), own(name="source")
    run(whole)
    stopped(source, monkeypatch)
    for number, (harm, said) in enumerate(HARM.values()):
        chosen = own(name=f"harmed{number}")
        shutil.copytree(folder_of(source), folder_of(chosen))
        places = folder_of(chosen) / "checkpoints"
        harm(places / "step-2")
        if number:  # all of them once is enough
            found = checkpoint.newest_whole(places)
            assert found[0] == places / "step-1" and said in found[1][places / "step-2"]
            continue
        summary = run(chosen)
        assert any(
            re.search(rf"(?s)passed over, and step-1 is taken.*step-2: {said}", note)
            for note in summary["notes"]
        )
        assert far(weights(whole), weights(chosen)) == 0.0
    chosen = own(name="lost")
    shutil.copytree(folder_of(source), folder_of(chosen))
    for path in (folder_of(chosen) / "checkpoints").glob("step-*"):
        flip(path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"(?s)no checkpoint here is whole.*step-2: model.*step-1: model.*resume=false"
    ):
        run(chosen)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        run({**chosen, "resume": str(folder_of(chosen) / "checkpoints" / "step-1")})


@pytest.mark.slow
def test_a_checkpoint_of_the_first_format_is_still_read(own: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, chosen = own(name="whole"), own()
    run(whole)
    stopped(chosen, monkeypatch)
    place = folder_of(chosen) / "checkpoints" / "step-2"
    head = json.loads((place / "state.json").read_text("utf-8"))
    head["state"]["fingerprint"] = head["state"].pop("made_from") and "of 0.1.0"
    sizes = {name: size for name, (size, _) in head["files"].items()}
    first = {"format": 1, "step": 2, "files": sizes, "state": head["state"]}
    (place / "state.json").write_text(json.dumps(first), "utf-8")
    summary = json.loads((folder_of(chosen) / "summary.json").read_text("utf-8"))
    for key in ("made_from", "models"):
        summary.pop(key)
    (folder_of(chosen) / "summary.json").write_text(json.dumps(summary), "utf-8")
    with pytest.raises(UserError, match="learning_rate: 0.001 -> 0.002"):  # noqa: RUF043
        run({**chosen, "learning_rate": 2e-3})
    assert any("continuing from step 2" in note for note in run(chosen)["notes"])
    assert far(weights(whole), weights(chosen)) == 0.0


def test_a_finished_model_whose_weights_changed_is_refused_and_not_written_over(own: Make) -> None:
    chosen = own()
    run(chosen)
    file = folder_of(chosen) / "model" / "model.safetensors"
    whole = file.read_bytes()
    flip(file)
    harmed = file.read_bytes()
    with pytest.raises(UserError, match=r"(?s)model: model.safetensors is damaged.*resume=false"):
        run(chosen)
    assert file.read_bytes() == harmed
    file.write_bytes(whole)
    assert run(chosen)["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("noted", [{"model": {"model.safetensors": 1}}, {"model": [1]}, [1], "x"])
def test_a_note_of_the_weights_in_another_form_is_not_known(own: Make, noted: Any) -> None:
    chosen = own()
    first = run(chosen)
    file = folder_of(chosen) / "summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "models": noted}), "utf-8")
    assert run(chosen)["started"] == first["started"], "skipped"


def test_a_run_of_0_1_0_is_compared_by_the_precision_that_it_computed_in(own: Make) -> None:
    """That version wrote `precision: auto` into its config, and what that came to into its summary only."""
    chosen = own()
    run(chosen)
    config_file, summary_file = folder_of(chosen) / "config.yaml", folder_of(chosen) / "summary.json"
    text = config_file.read_text("utf-8")
    assert "precision: fp32" in text
    config_file.write_text(text.replace("precision: fp32", "precision: auto"), "utf-8")
    summary = json.loads(summary_file.read_text("utf-8"))
    for key in ("made_from", "models"):
        summary.pop(key)
    summary_file.write_text(json.dumps(summary), "utf-8")
    before = summary_file.read_bytes()
    assert run(chosen)["status"] == "done" and summary_file.read_bytes() == before, "it is skipped"
    with pytest.raises(UserError, match="precision: fp32 -> bf16"):
        run({**chosen, "precision": "bf16"})


@pytest.mark.slow
def test_rows_and_summaries_that_nobody_can_read_stop_nothing(
    own: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = own()
    stopped(chosen, monkeypatch)
    kept = folder_of(chosen)
    lines = (kept / "metrics.jsonl").read_text("utf-8")
    (kept / "metrics.jsonl").write_bytes(b'{"step": null}\n[1]\n\xff\xfe\n' + lines.encode() + b'{"st')
    (kept / "summary.json").write_bytes(b"\xff\xff")
    assert run(chosen)["status"] == "done"
    assert [row["step"] for row in rows(chosen)] == sorted(row["step"] for row in rows(chosen))


# --- one start at a time ---------------------------------------------------------------------------------------------


def test_a_second_start_is_refused_and_harms_nothing(own: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = own()
    folder = Path(chosen["output_dir"])
    real = results.save_model
    told: list[str] = []

    def meanwhile(*given: Any) -> None:
        with pytest.raises(UserError) as refusal:
            pipeline.run_options(config.RawConfig({**chosen, "resume": False}))
        told.append(str(refusal.value))
        real(*given)

    monkeypatch.setattr(results, "save_model", meanwhile)
    assert pipeline.run_options(config.RawConfig(chosen))["status"] == "done"
    assert re.match(rf"{folder}: process {os.getpid()} on .* writes here", told[0])
    assert (
        not (folder / ".lock").exists() and torch.isfinite(weights(chosen)["model.embed_tokens.weight"]).all()
    )
