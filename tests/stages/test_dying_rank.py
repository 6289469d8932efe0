"""A rank that is killed in the middle of a sharded run ends the others within seconds, and is named alone."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.stages.conftest import options_of

pytestmark = pytest.mark.slow
RANK = """
import json, os, signal, sys
from espalier import cli, config
from espalier.engine import strategy
from espalier.runs import train
options = json.load(open(sys.argv[1]))
step = strategy.update
def update(module, optimizer):
    assert options["strategy"] == strategy.kind_of(None, module)
    step(module, optimizer)
    update.steps += 1
    if os.environ["RANK"] == "1" and update.steps == 3:
        open(sys.argv[1] + ".killed", "w").write(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
update.steps = 0
strategy.update = update
sys.exit(cli.guarded(lambda: train.run_stage(config.RawConfig(options)) and 0))
"""
PARENT = f"""
import sys
from espalier import cli
from espalier.engine.launch import as_ranks
sys.exit(cli.guarded(lambda: as_ranks([sys.executable, "-c", {RANK!r}, sys.argv[1]], 2)))
"""


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp"])
def test_the_others_end_within_seconds(strategy: str, world: Path, tmp_path: Path) -> None:
    made: dict[str, Any] = options_of(world, tmp_path, "sft", max_steps=100_000, samples=0, eval_steps=0)
    file = tmp_path / "options.json"
    file.write_text(
        json.dumps(made | {"strategy": strategy, "save_steps": 2, "save_total_limit": 1}), "utf-8"
    )
    done = processes.run([sys.executable, "-c", PARENT, str(file)], capture_output=True)
    lasted = time.time() - Path(f"{file}.killed").stat().st_mtime
    said = [line for line in done.stderr.splitlines() if "was ended by" in line]
    number = Path(f"{file}.killed").read_text()
    assert done.returncode == 1 and len(said) == 1 and done.stderr.rstrip().endswith(said[0])
    assert said[0].startswith(f"rank 1 (process {number}) was ended by SIGKILL, and the other ranks with it.")
    assert "Traceback" not in done.stderr + done.stdout, "what the others met is no news"
    assert lasted < 15, lasted
    assert [path.name for path in (tmp_path / "sft" / "checkpoints").glob("step-*")] == ["step-2"]
