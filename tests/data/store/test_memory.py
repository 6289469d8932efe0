"""Memory does not grow with the number of records: reading, tokenising, the preflight, a split and an epoch's feed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests import processes

PROGRAM = """
import json, resource, sys
from pathlib import Path
from espalier.data.choice.choose import held_out, without
from espalier.data.steps.feed import DatasetFeed, Rows
from espalier.data.store.stack import stored
from espalier.data.preflight.run import Preflight
from espalier.data.read.specs import parse_specs
from espalier.data.store.open import ReadSettings, opened
from espalier.data.store.stack import Choice
from espalier.trees import lay_out_tree
from tests.data.store.helpers import job, tokenizer_of

folder = Path(sys.argv[1])
wanted = job("chat", tokenizer_of(), cutoff_len=512)

def peak(name):
    stack, order, loaded = opened(parse_specs(str(folder / name)), wanted, ReadSettings(folder / "kept"))
    every = Choice(stack, order)
    marks = lambda: (stack.of_records("prompt", numbers) for numbers in every.chunks())
    train, held = (Choice(stack, p) for p in without(order, len(every), held_out(marks, len(every), 0.01, 0)))
    preflight = Preflight(512, str)
    preflight.read("dataset", loaded)
    preflight.part("train", train)
    preflight.part("held out", held)
    preflight.report()
    feed = DatasetFeed(stored(train), Rows(lay_out_tree, 512), trees_per_step=64)
    for _, step in zip(range(20), feed.steps()):
        assert step
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

peak("small.jsonl")
print(json.dumps([peak("small.jsonl"), peak("large.jsonl")]))
"""


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:
    for name, count in (("small.jsonl", 2000), ("large.jsonl", 20_000)):
        with (tmp_path / name).open("w", encoding="utf-8") as stream:
            for number in range(count):
                row = {
                    "instruction": f"{number} 乘以 {number + 1} 是多少？",
                    "output": f"是 {number * (number + 1)}。",
                }
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path.cwd())])}
    done = processes.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**environment, "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    small, large = json.loads(done.stdout)
    # 18,000 records more; held as trees they would take over 30 MB, as numbers a few bytes each.
    assert large - small < 12e6, (small, large)
