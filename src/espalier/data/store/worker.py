"""The program of a worker process: a job, then tasks, from stdin; results to stdout; until stdin ends (see `crew`)."""

from __future__ import annotations

import os
import pickle
import signal
import sys

from espalier.data.store.build import work
from espalier.data.store.job import Job


def main() -> None:
    """Serve until the parent closes the pipe or goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    asked = sys.stdin.buffer
    try:
        job: Job = pickle.load(asked)
        while True:
            block, most, tokenise = pickle.load(asked)
            try:
                answer: object = work(job, block, most, tokenise=tokenise)
            except Exception as error:
                answer = RuntimeError(f"{type(error).__name__} in a process that tokenises: {error}")
                answer.__cause__ = error
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
