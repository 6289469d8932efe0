"""What it gives to keep freed memory in the process: the same work in two processes, with and without.

python benchmarks/malloc.py [--task sft|sampling] [--model S|M] [--records 16] [--rounds 3]

`espalier.engine.hardware.keep_freed_memory` cannot be undone, so each side is a process of its own that
times its steps, in turn.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from _common import lengths, model_of, report, tokenizer_of
from _peers import Side
from espalier.engine.hardware import keep_freed_memory
from espalier.models.probe import probe
from espalier.models.sampling.generate import Sampling, sample
from training import ours, rows_of


def sampling(size: str, records: int) -> Side:
    tokenizer = tokenizer_of(size)
    lm = model_of(size, tokenizer)
    traits = probe(lm)
    prompts = [list(range(3, 3 + n)) for n in lengths(records, 180, 3, 600)]

    def run() -> dict[str, float]:
        sample(lm, traits, prompts, Sampling(32))
        return {}

    return run


def child(task: str, size: str, records: int, kept: bool) -> dict[str, float]:
    """Seconds of a run after one to warm up, and how many of them were the kernel's."""
    if kept:
        assert keep_freed_memory(), "this C library has no such switch"
    if task == "sft":
        run, _ = ours(size, "sft", rows_of(records, "sft"), tokenizer_of(size))
    else:
        run = sampling(size, records)
    run()
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {
        "records": float(records),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": used,
        "system_seconds": after.ru_stime - before.ru_stime,
        "page_faults": float(after.ru_minflt - before.ru_minflt),
        "peak_megabytes": after.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="S", choices=["S", "M"])
    parser.add_argument("--task", default="sft", choices=["sft", "sampling"])
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=["kept", "returned"])
    wanted = parser.parse_args()
    if wanted.child:
        print(json.dumps(child(wanted.task, wanted.model, wanted.records, wanted.child == "kept")))
        return
    found: dict[str, list[dict[str, float]]] = {"kept": [], "returned": []}
    for _ in range(wanted.rounds):
        for side, rows in found.items():
            command = [
                sys.executable,
                __file__,
                "--child",
                side,
                "--model",
                wanted.model,
                "--task",
                wanted.task,
            ]
            said = subprocess.run(
                [*command, "--records", str(wanted.records)], capture_output=True, text=True, check=True
            )
            rows.append(json.loads(said.stdout.splitlines()[-1]))
    medians = {
        side: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for side, rows in found.items()
    }
    for numbers in medians.values():
        numbers["records_per_cpu_second"] = numbers["records"] / numbers["cpu_seconds"]
    report(f"malloc {wanted.task} {wanted.model}", medians, "records_per_cpu_second", "kept")


if __name__ == "__main__":
    main()
