"""How threads wait for each other: sleeping (what the command line sets) with spinning (libgomp's own way).

python benchmarks/waiting.py [--model T|S|M] [--records 16] [--busy 0] [--rounds 5]

libgomp reads its setting when torch is loaded, so each side is a process of its own that times SFT steps, in turn.
``--busy`` starts so many other processes that want a core, as on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from _common import MODELS, report, tokenizer_of
from training import ours, rows_of


def child(size: str, records: int) -> dict[str, float]:
    """Seconds of a run after one to warm up."""
    run, _ = ours(size, "sft", rows_of(records, "sft"), tokenizer_of(size))
    run()
    start = time.perf_counter()
    run()
    return {"records_per_second": records / (time.perf_counter() - start)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="T", choices=list(MODELS))
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true")
    wanted = parser.parse_args()
    if wanted.child:
        print(json.dumps(child(wanted.model, wanted.records)))
        return
    sides: dict[str, list[dict[str, float]]] = {"sleeping": [], "spinning": []}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(wanted.busy)]
    try:
        for _ in range(wanted.rounds):
            for side, rows in sides.items():
                environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
                if side == "sleeping":
                    environment["OMP_WAIT_POLICY"] = "passive"
                command = [sys.executable, __file__, "--child", "--model", wanted.model]
                command += ["--records", str(wanted.records)]
                said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                rows.append(json.loads(said.stdout.splitlines()[-1]))
    finally:
        for process in busy:
            process.kill()
    medians = {
        side: {"records_per_second": statistics.median(row["records_per_second"] for row in rows)}
        for side, rows in sides.items()
    }
    report(f"waiting {wanted.model} {wanted.busy} busy", medians, "records_per_second", "sleeping")


if __name__ == "__main__":
    main()
