"""Blocks through `build.work` in several processes, their results in the order of the blocks.

The workers are fresh interpreters that speak over pipes: nothing of the parent's threads, locks or GPU is copied into
them as by a fork, and a script without `if __name__ == "__main__"` is not run again as by `multiprocessing`'s spawn.
One costs about 2 seconds of CPU time to start, so few blocks are done in this process. A worker ends when its pipe
does, so none outlives a parent that was killed.

loky 3.5 was tried in its place, on 36,000 records with 2 workers on 2 cores: 31 and 41 s for 24 and 26 s, 14.3 s of CPU
time for 12.8 s; and its workers slept on 3 s after their parent was killed (SIGKILL).
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from espalier.data.read.lines import Block
from espalier.data.store.job import BlockResult, Job
from espalier.errors import UserError

BlockTask = tuple[Block, int | None, bool]
"""A block, and `most` and `tokenise` of `build.work`."""

_AHEAD = 2
"""Blocks a worker may have done before they are asked for; what bounds the memory."""


class Crew:
    """Workers for one job; use it in a `with`.

    Args:
        job: what is done with every block; it must pickle.
        workers: how many processes, at least 1.
    """

    def __init__(self, job: Job, workers: int) -> None:
        self._job = job
        self._workers = [_Worker(job) for _ in range(workers)]
        self._free = deque(self._workers)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers)

    def results(self, tasks: Iterator[BlockTask]) -> Iterator[tuple[BlockTask, BlockResult]]:
        """Each task with its result, in order; tasks are taken a few ahead of what was given.

        Raises:
            UserError: a worker died.
        """
        begun: deque[tuple[BlockTask, Future[BlockResult]]] = deque()
        for task in tasks:
            begun.append((task, self._threads.submit(self._result, task)))
            if len(begun) > len(self._workers) * _AHEAD:
                first, future = begun.popleft()
                yield first, future.result()
        for first, future in begun:
            yield first, future.result()

    def _result(self, task: BlockTask) -> BlockResult:
        with self._lock:
            worker = self._free.popleft()
        try:
            return worker.ask(task)
        finally:
            with self._lock:
                self._free.append(worker)

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()
        self._threads.shutdown(cancel_futures=True)


class _Worker:
    def __init__(self, job: Job) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "espalier.data.store.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._job: Job | None = job

    def ask(self, task: BlockTask) -> BlockResult:
        try:
            if self._job is not None:
                pickle.dump(self._job, self._to, pickle.HIGHEST_PROTOCOL)
                self._job = None
            pickle.dump(task, self._to, pickle.HIGHEST_PROTOCOL)
            self._to.flush()
            answer = pickle.load(self._from)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise UserError(
                f"a process that tokenised has ended with {code} ({type(error).__name__}); if the machine is short of "
                "memory, lower preprocessing_num_workers"
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, BlockResult)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            try:
                pipe.close()
            except OSError:
                continue
