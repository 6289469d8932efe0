"""Serving: `espalier serve` against `transformers serve`, with streaming clients over loopback.

Tokens a second of all clients together and the median time to an answer's first text, at 1, 4 and 16 clients that ask
one question after the other; and at 16 clients with prompts of some 500 tokens, which begin alike (a document that all
ask about) or have nothing in common. Both servers have the same random model and are asked in turn; what is
reported are ratios of medians. A request that is refused, or an answer that is too short, ends the benchmark.

python benchmarks/serve.py [--model S] [--new 64] [--rounds 3] [--clients 1,4,16]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from _common import model_of, report, text, tokenizer_of
from espalier.models.forward import TreeModel
from espalier.models.probe import probe
from espalier.models.saved import save_model

DOCUMENT = 340
"""Words of the document, about 500 tokens."""


@dataclass(frozen=True)
class Side:
    """A server, and what it calls the model."""

    url: str
    model: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """That it has used. Waiting for a core that others use counts in the seconds, and not in these."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def server(command: list[str], port: int, model: str) -> Iterator[Side]:
    """A server process, until it answers; ended at the end."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"{' '.join(command)} has ended:\n{log.read()}")
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(url + "/health").status_code == 200:
                        break
                time.sleep(0.2)
            yield Side(url, model, psutil.Process(process.pid))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


async def ask(client: httpx.AsyncClient, url: str, model: str, prompt: str, new: int) -> tuple[float, float]:
    """Seconds to the first text and to the end of an answer."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": new,
        "stream": True,
        "temperature": 1.0,
        "seed": 1,
    }
    began, first = time.perf_counter(), 0.0
    async with client.stream("POST", url + "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{url}: {answer.status_code} {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not first and re.search(r'"text":\s*"[^"]', line):
                first = time.perf_counter() - began
    return first, time.perf_counter() - began


def load(side: Side, prompts: list[list[str]], new: int) -> dict[str, float]:
    """Each client asks its prompts one after the other, all clients at a time."""
    url, model = side.url, side.model

    async def one(client: httpx.AsyncClient, own: list[str]) -> list[tuple[float, float]]:
        return [await ask(client, url, model, prompt, new) for prompt in own]

    async def every() -> list[tuple[float, float]]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(timeout=600, limits=limits) as client:
            return list(itertools.chain(*await asyncio.gather(*(one(client, own) for own in prompts))))

    began, cpu = time.perf_counter(), side.cpu_seconds()
    times = asyncio.run(every())
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "cpu_seconds": side.cpu_seconds() - cpu,
        "records": float(len(times) * new),
        "tokens_per_second": len(times) * new / seconds,
        "first_text_ms": 1000 * statistics.median(first for first, _ in times),
    }


def questions(clients: int, each: int, seed: int, before: str = "") -> list[list[str]]:
    return [
        [f"{before}{text(24, 10_000 + seed * 1000 + client * 50 + at)}" for at in range(each)]
        for client in range(clients)
    ]


def documents(clients: int, each: int, seed: int) -> list[list[str]]:
    return [
        [
            f"{text(DOCUMENT, 70_000 + seed * 1000 + client * 50 + at)} {question}"
            for at, question in enumerate(own)
        ]
        for client, own in enumerate(questions(clients, each, seed))
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="S")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--alone", action="store_true", help="without transformers serve")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as servers:
        folder = Path(made) / "model"
        folder.mkdir()
        tokenizer = tokenizer_of(wanted.model)
        lm = model_of(wanted.model, tokenizer).eval()
        save_model(folder, TreeModel(lm, probe(lm)), tokenizer)
        ports = free_port(), free_port()
        ours = [sys.executable, "-m", "espalier.cli", "serve", f"m={folder}", "--port", str(ports[0])]
        sides = {"espalier": servers.enter_context(server([*ours, "--dtype", "float32"], ports[0], "m"))}
        if not wanted.alone:
            program = str(Path(sys.executable).parent / "transformers")
            theirs = [
                program,
                "serve",
                str(folder),
                "--port",
                str(ports[1]),
                "--device",
                "cpu",
                "--dtype",
                "float32",
            ]
            sides["transformers serve"] = servers.enter_context(server(theirs, ports[1], str(folder)))
        measure(sides, wanted)


def measure(sides: dict[str, Side], wanted: Any) -> None:
    counts = [int(n) for n in wanted.clients.split(",")]
    document = text(DOCUMENT, 5) + " "
    loads = {f"{n} clients": (lambda seed, n=n: questions(n, max(1, 8 // n), seed)) for n in counts}
    loads[f"{counts[-1]} clients, shared document"] = lambda seed: questions(counts[-1], 1, seed, document)
    loads[f"{counts[-1]} clients, own documents"] = lambda seed: documents(counts[-1], 1, seed)
    # All loads of all sides in turn, so that what else the machine does falls on all of them alike.
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(wanted.rounds + 1):
        for number, (name, make) in enumerate(loads.items()):
            for side, one in sides.items():
                found = load(one, make(100 * number + turn), wanted.new)
                if turn:  # the first one warms up
                    rows.setdefault((name, side), []).append(found)
    medians: dict[str, dict[str, dict[str, float]]] = {name: {} for name in loads}
    for (name, side), own in rows.items():
        medians[name][side] = {key: statistics.median(row[key] for row in own) for key in own[0]}
    for name, numbers in medians.items():
        report(f"serve {wanted.model} {name}", numbers, "tokens_per_second", "espalier")
    first, last = f"{counts[0]} clients", f"{counts[-1]} clients"
    alike, apart = f"{last}, shared document", f"{last}, own documents"
    for side in sides:
        for how, of in (("seconds", "seconds"), ("CPU seconds", "cpu_seconds")):
            speed = {name: numbers[side]["records"] / numbers[side][of] for name, numbers in medians.items()}
            print(
                f"{side:20} tokens by {how}: {last} / {first} {speed[last] / speed[first]:.2f}x, "
                f"shared / own documents {speed[alike] / speed[apart]:.2f}x"
            )
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
