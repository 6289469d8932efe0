"""A plan of whole stages: what it says of a model's bytes by hand, what it advises, and the command as users type it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from espalier.cli import app
from espalier.errors import UserError
from espalier.plan.advice import changes
from espalier.plan.devices import GIB, device, plain
from espalier.plan.duration import flops
from espalier.plan.forecast import Load, forecast
from espalier.plan.memory import Method, ModelSizes, held

SEVEN = ModelSizes(
    parameters=7 * 10**9,
    trained=7 * 10**9,
    largest=131 * 10**6,
    frozen_bytes=0,
    layers=32,
    width=4096,
    words=32000,
    row=2 * GIB,
    casts=13 * 10**9,
)
FOUR = {"processes": 4, "rows": 4, "length": 1024, "logits": 4096}


def test_the_bytes_of_seven_billion_parameters_by_hand() -> None:
    """Rajbhandari et al. 2020, figure 1: 2 + 2 + 12 bytes a parameter, and what is left of them on each of N devices."""
    p = SEVEN.parameters
    found = {name: held(SEVEN, Method(strategy=name, **FOUR)) for name in ("zero1", "zero2", "zero3")}  # type: ignore[arg-type]
    for name, shares in {"zero1": (2, 2, 3), "zero2": (2, 0.5, 3), "zero3": (0.5, 0.5, 3)}.items():
        kinds = ("weights", "gradients", "optimizer")
        assert tuple(found[name][kind] / p for kind in kinds) == shares, name
    plain_one = held(SEVEN, Method(strategy="ddp", **FOUR))  # type: ignore[arg-type]
    assert (plain_one["weights"], plain_one["gradients"], plain_one["optimizer"]) == (4 * p, 4 * p, 8 * p)
    assert held(SEVEN, Method(strategy="zero3", offload="all", **FOUR))["weights"] == 0  # type: ignore[arg-type]


def test_checkpointing_keeps_the_inputs_of_blocks_and_one_block() -> None:
    method = Method(**FOUR)  # type: ignore[arg-type]
    kept = held(SEVEN, replace(method, checkpointing=True))["activations"]
    assert kept == 32 * 4 * 1024 * 4096 * 2 + 4 * 2 * GIB // 32
    assert held(SEVEN, method)["activations"] == 8 * GIB
    whole, again = (flops(SEVEN, 1000, 1024, checkpointing=way) for way in (False, True))
    assert again / whole == pytest.approx(4 / 3, rel=0.01) and whole == pytest.approx(
        6 * 7e9 * 1000, rel=0.05
    )


def test_advice_fits_and_the_first_is_the_fastest() -> None:
    load = Load("sft", {"model": SEVEN}, Method(**FOUR), tokens=4096, steps=10)  # type: ignore[arg-type]
    small = device("A100-40")
    assert forecast(load, small).verdict == "does not fit"
    found = changes(load, small, batch=4, accumulation=1)
    assert found and all(change.found.fits for change in found)
    same = [change for change in found if change.same]
    assert [c.found.step_seconds for c in same] == sorted(c.found.step_seconds for c in same)
    assert any("strategy" in change.keys for change in same)
    assert all(change.keys.get("finetuning_type") == "lora" for change in found if not change.same)
    alone = replace(load, method=replace(load.method, processes=1, strategy="single"))
    assert not any("strategy" in c.keys and "offload" not in c.keys for c in changes(alone, small, 4, 1)), (
        "one device has nobody to share with"
    )


def test_whole_models_stand_on_each_device_before_they_are_cut() -> None:
    """Eight shares of 30 billion parameters are small; the 120 GB that they are cut from are not."""
    large = replace(SEVEN, parameters=30 * 10**9, trained=30 * 10**9, casts=0)
    method = Method(strategy="zero3", offload="all", **{**FOUR, "processes": 8})  # type: ignore[arg-type]
    found = forecast(Load("sft", {"model": large}, method, tokens=4096, steps=10), device("A100-80"))
    assert sum(found.items.values()) < 30 * GIB and found.verdict == "does not fit"
    assert found.needed == found.start >= 4 * large.parameters
    small = forecast(Load("sft", {"model": SEVEN}, method, tokens=4096, steps=10), device("A100-80"))
    assert small.fits and small.reserved is not None and small.reserved > sum(small.items.values())


def test_a_device_by_its_name() -> None:
    assert device("a100 80GB") == device("A100-80") and plain("RTX 4090") == plain("rtx4090")
    with pytest.raises(
        UserError, match=r"--gpu H1OO: not in the table, which has V100-16.*Did you mean H100\?"
    ):
        device("H1OO")


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n} + {n}?"},
                {"role": "assistant", "content": f"{2 * n}."},
            ]
        }
        for n in range(40)
    ]
    (tmp_path / "sft.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    prompts = [{"prompt": f"{n} + {n}?", "reference": f"{2 * n}."} for n in range(40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in prompts), "utf-8")
    model = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
             "num_attention_heads": 4, "vocab_size": 300}  # fmt: skip
    made = {
        "output_dir": str(tmp_path / "run"),
        "cutoff_len": 128,
        "vocab_size": 300,
        "precision": "fp32",
        "stages": [
            {"name": "sft", "stage": "sft", "model_config": model, "dataset": [str(tmp_path / "sft.jsonl")]},
            {"name": "ppo", "stage": "ppo", "model_name_or_path": "run:sft", "reward_function": "equals",
             "dataset": [str(tmp_path / "prompts.jsonl")], "max_new_tokens": 16},
        ],
    }  # fmt: skip
    file = tmp_path / "chain.yaml"
    file.write_text(yaml.safe_dump(made), "utf-8")
    return file


def test_a_pipeline_in_words_and_as_json(chain: Path) -> None:
    said = CliRunner().invoke(app, ["plan", str(chain), "--gpu", "V100-16"])
    assert said.exit_code == 0, said.output
    for words in ("1 x V100-16", "sft: fits", "ppo: fits", "reference", "sampling"):
        assert words in said.output
    found = json.loads(CliRunner().invoke(app, ["plan", str(chain), "--gpu", "V100-16", "--json"]).stdout)
    sft, ppo = (found["stages"][name] for name in ("sft", "ppo"))
    assert ppo["items"]["weights"] == 2 * sft["items"]["weights"] > 0, "policy and critic"
    assert ppo["items"]["reference"] == sft["items"]["weights"] and sft["verdict"] == "fits"
    assert sft["steps"] == 15, "40 records, 8 a step, 3 epochs"
    assert sft["reserved_bytes"] > sum(sft["items"].values()) and "nvidia-smi will show about" in said.output
    missing = CliRunner().invoke(app, ["plan", str(chain), "--gpu", "nothing"])
    assert isinstance(missing.exception, UserError)


def test_a_deepspeed_file_is_planned_as_it_is(chain: Path) -> None:
    def planned(*keys: str) -> dict[str, Any]:
        said = CliRunner().invoke(
            app, ["plan", str(chain), *keys, "--gpu", "V100-16", "--gpus", "2", "--json"]
        )
        assert said.exit_code == 0, (said.output, said.exception)
        found: dict[str, Any] = json.loads(said.stdout)["stages"]["sft"]
        return found

    shipped, named = planned("deepspeed=stage-3-offload"), planned("strategy=zero3", "offload=all")
    plain = planned()
    assert "weights" not in shipped["items"] and "weights" not in named["items"]
    assert "weights" in plain["items"] and shipped["host_bytes"] == named["host_bytes"] > 0
    wrong = CliRunner().invoke(
        app, ["plan", str(chain), "strategy=single", "--gpu", "V100-16", "--gpus", "2"]
    )
    assert "strategy: single is one process, and this run has 2" in wrong.output


@pytest.mark.slow
def test_what_a_run_takes_on_this_processor(chain: Path, tmp_path: Path) -> None:
    """The peak of a process of its own, within 15 %."""
    changed = [f"output_dir={tmp_path / 'one'}", "eval_steps=0", "samples=0", "save_steps=0"]
    raw: dict[str, Any] = yaml.safe_load(chain.read_text("utf-8"))
    stage = raw.pop("stages")[0]
    stage["model_config"] |= {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "vocab_size": 8192,
    }
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump({**raw, **stage, "vocab_size": 8192, "max_steps": 3}), "utf-8")
    planned = CliRunner().invoke(app, ["plan", str(file), *changed, "--json"])
    needed = json.loads(planned.stdout)["stages"]["sft"]["needed_bytes"]
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'espalier.cli', *sys.argv[1:]], check=True, capture_output=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    unit = 1 if sys.platform == "darwin" else 1024
    done = subprocess.run(
        [sys.executable, "-c", code, "sft", str(file), *changed], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert needed == pytest.approx(int(done.stdout) * unit, rel=0.15)
