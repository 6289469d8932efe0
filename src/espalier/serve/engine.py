"""One thread that answers many requests together: they come and go between two steps of the model.

A request's tokens follow from its prompt, its settings and its seed, and not from what is answered beside it, as far
as rounding goes (see `models.sampling.generate`). What two prompts have in common is computed once
(`models.prefixes`).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from espalier.errors import UserError
from espalier.models.forward import TreeModel
from espalier.models.sampling.joining import AHEAD, JoinedRows, Newcomer, make_rows
from espalier.models.sampling.room import bytes_of_answer
from espalier.models.sampling.rows import uniforms_of
from espalier.serve.drawing import Drawn, Token, draw_rows
from espalier.serve.grammar import Following, Grammars
from espalier.serve.requests import (
    Counts,
    EngineLimits,
    Event,
    Failed,
    Finished,
    Full,
    Request,
    Tell,
    TextPiece,
    Ticket,
)
from espalier.serve.text import AnswerText

ONE_AT_A_TIME = threading.Lock()
"""Held while a model runs: what the attention of a row is about is known by one slot of the process."""

NO_NUMBERS = "the model gives logits that are no numbers: no token can be drawn."

READ_AT_A_TIME = 1024
"""Tokens of new prompts after which the answers that are being written get their next token first."""


@dataclass
class _Row(Drawn):
    job: Ticket = None  # type: ignore[assignment]
    choice: int = 0
    text: AnswerText = None  # type: ignore[assignment]
    untold: list[Token] = field(default_factory=list)
    ended: bool = False

    def take(self, token: Token) -> None:
        """One more token; tells what can be shown of it."""
        request = self.job.request
        self.written.append(token.id)
        if self.allowed is not None:
            self.allowed.take(token.id)
        at_end = token.id in request.ends
        if not at_end:
            self.untold.append(token)
            self._tell(self.text.push(token.id))
        full = len(self.written) >= request.settings.max_new_tokens
        if at_end or self.text.stopped or full:
            self._tell(self.text.end(), last=True)
            self.ended = True
            reason = self.text.stopped or ("stop" if at_end else "length")
            self.job.tell(Finished(self.choice, reason, len(self.written)))
            self.job.open -= 1

    def _tell(self, text: str, *, last: bool = False) -> None:
        if text or (last and self.untold and self.job.request.settings.logprobs is not None):
            told, self.untold = tuple(self.untold), []
            self.job.tell(TextPiece(self.choice, text, told))


class Engine:
    """Answers requests with one model in a thread of its own.

    Args:
        model: evaluating; nobody else may run it but under `ONE_AT_A_TIME`.
        tokenizer: its.
        limits: what it may take.
    """

    def __init__(self, model: TreeModel, tokenizer: Any, limits: EngineLimits) -> None:
        self.model, self.tokenizer, self.limits = model, tokenizer, limits
        self.counts = Counts()
        self.grammars = Grammars(tokenizer)
        self.rows = self._new_rows()
        self._waiting: deque[Ticket] = deque()
        self._present: list[_Row] = []
        self._logits = torch.zeros(0, 1)
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="espalier-engine", daemon=True)
        self._thread.start()
        atexit.register(
            self.close
        )  # a thread inside of torch when the interpreter goes away aborts the process

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return len(self._present)

    def submit(self, request: Request, tell: Tell) -> Ticket:
        """Take a request; `tell` is called in the engine's thread, and must not wait.

        Raises:
            Full: too many wait.
            UserError: it can never be answered.
        """
        self._check(request)
        job = Ticket(request, tell, open=request.settings.n, bytes=self._bytes(request))
        with self._wake:
            if self._stopping:
                raise UserError("the model is being closed: no more questions are taken.")
            if len(self._waiting) >= self.limits.waiting:
                self.counts.refused += 1
                raise Full(len(self._waiting), 1.0 + len(self._waiting) / max(1, self.limits.rows))
            self.counts.requests += 1
            self._waiting.append(job)
            self._wake.notify()
        return job

    def events(self, request: Request) -> Iterator[Event]:
        """The same, waited for; whoever stops listening has it cancelled.

        Raises:
            UserError: it cannot be answered, or the model fails.
        """
        told: queue.SimpleQueue[Event] = queue.SimpleQueue()
        job = self.submit(request, told.put)
        left = request.settings.n
        try:
            while left:
                event = told.get()
                if isinstance(event, Failed):
                    raise UserError(event.message)
                left -= isinstance(event, Finished)
                yield event
        finally:
            job.cancel()

    def close(self, seconds: float = 0.0) -> bool:
        """Take no more requests and end, when those that were taken are answered or the seconds are over.

        Returns:
            Whether all were answered.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(seconds)
        answered = not self._thread.is_alive()
        for job in [*self._waiting, *(row.job for row in self._present)]:
            job.cancel()
        self._thread.join(5.0)
        atexit.unregister(self.close)
        return answered

    def _check(self, request: Request) -> None:
        settings, ids = request.settings, request.ids
        if not ids:
            raise UserError("the prompt has no token. Say something.")
        if len(ids) + settings.max_new_tokens > self.limits.context:
            raise UserError(
                f"the prompt has {len(ids)} tokens and the answer may have {settings.max_new_tokens}: together more than "
                f"the {self.limits.context} of this model's context. Shorten the prompt, or lower the answer's limit."
            )
        if settings.n > self.limits.rows:
            raise UserError(f"n {settings.n}: at most {self.limits.rows} answers are written at a time here.")
        size = len(self.tokenizer)
        if unknown := [token for token in settings.logit_bias if not 0 <= token < size]:
            raise UserError(f"logit_bias: there is no token {unknown[0]}; the vocabulary has {size}.")
        if self.limits.bytes and self._bytes(request) > self.limits.bytes:
            raise UserError(
                f"n {settings.n}, a prompt of {len(ids)} tokens and answers of {settings.max_new_tokens}: they need more "
                "memory than there is. Lower the answer's limit, or n."
            )

    def _bytes(self, request: Request) -> int:
        settings = request.settings
        one = bytes_of_answer(
            self.model.lm, self.model.traits, len(request.ids), settings.max_new_tokens, settings.n
        )
        return one * settings.n

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._present or self._stopping):
                    self._wake.wait()
                if self._stopping and not self._waiting and not self._present:
                    return
            try:
                self._step()
            except Exception as error:  # whatever the model's code says; the thread must go on
                if not isinstance(error, UserError):
                    logging.getLogger(__name__).exception("the model has failed")
                self._fail_all(str(error) if isinstance(error, UserError) else "the model has failed")

    def _step(self) -> None:
        """Whoever is to come comes, each row gets a token, and those that have ended go."""
        self._drop_overdue()
        self._admit()
        if not self._present:
            return
        drawn = draw_rows(self._logits, self._present)
        for row, token in zip(self._present, drawn, strict=True):
            if token is None:
                self._fail(row.job, Failed("model", NO_NUMBERS))
            elif not row.ended:
                row.take(token)
        self.counts.tokens += len(drawn)
        going = [t.id for t, row in zip(drawn, self._present, strict=True) if t is not None and not row.ended]
        tokens = torch.tensor(going, dtype=torch.int64)
        self._drop_ended()
        if self._present:
            with ONE_AT_A_TIME:
                self._logits = self.rows.next_logits(tokens.to(self._logits.device))

    def _admit(self) -> None:
        """Whoever has come first is read first, as far as places and memory go."""
        read = self.rows.read
        while self.rows.read - read < READ_AT_A_TIME:
            free, taken = self.rows.free, sum(row.job.bytes for row in self._present if row.choice == 0)
            fitting: list[Ticket] = []
            for job in list(self._waiting):
                free -= job.request.settings.n
                taken += job.bytes
                if free < 0 or (self.limits.bytes and taken > self.limits.bytes):
                    break
                fitting.append(job)
            if not fitting:
                return
            asked = [
                Newcomer(j.request.ids, j.request.settings.n, j.request.settings.max_new_tokens)
                for j in fitting
            ]
            if self._present and self._read_ahead(asked[0]):
                return
            # Who is long comes to the head of those that wait, and is read part by part.
            chosen = [at for at in self.rows.together(asked) if not at or len(asked[at].ids) <= AHEAD]
            self._read([fitting[at] for at in chosen], [asked[at] for at in chosen])

    def _read_ahead(self, new: Newcomer) -> bool:
        with ONE_AT_A_TIME:
            return self.rows.read_ahead(new)

    def _read(self, jobs: Sequence[Ticket], asked: Sequence[Newcomer]) -> None:
        for job in jobs:
            self._waiting.remove(job)
        try:
            with ONE_AT_A_TIME:
                logits = self.rows.join(asked)
            for job, known in zip(jobs, self.rows.reused, strict=True):
                job.reused = known
            self._logits = torch.cat([self._logits, logits]) if self._present else logits
            self._present += [row for job in jobs for row in self._rows_of(job)]
        except Exception as error:
            said = str(error) if isinstance(error, UserError) else "the model has failed at this prompt"
            for job in jobs:
                self._fail(job, Failed("model", said))
            raise

    def _rows_of(self, job: Ticket) -> list[_Row]:
        settings = job.request.settings
        seed = secrets.randbits(63) if settings.seed is None else settings.seed
        uniforms = uniforms_of([seed], settings.n, settings.max_new_tokens)
        return [
            _Row(
                settings,
                job.request.ids,
                uniforms[choice],
                allowed=self._allowed(job.request),
                job=job,
                choice=choice,
                text=AnswerText(self.tokenizer, settings.stop, self.limits.banned),
            )
            for choice in range(settings.n)
        ]

    def _allowed(self, request: Request) -> Following | None:
        if not request.settings.grammar:
            return None
        return self.grammars.start(request.settings.grammar, request.ends, self._logits.shape[1])

    def _drop_overdue(self) -> None:
        """Cancelled requests, and those that took too long."""
        now = time.monotonic()
        for job in {id(job): job for job in [*self._waiting, *(row.job for row in self._present)]}.values():
            if job.cancelled:
                self._fail(job, Failed("cancelled", "the request was given up"))
            elif self.limits.seconds and now - job.begun > self.limits.seconds:
                self._fail(job, Failed("timeout", f"the answer took more than {self.limits.seconds:g} s"))
        self._drop_ended()

    def _fail(self, job: Ticket, why: Failed) -> None:
        if job.open <= 0:
            return
        job.open = 0
        self.counts.cancelled += why.reason == "cancelled"
        self.counts.failed += why.reason != "cancelled"
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)
        for row in self._present:
            row.ended = row.ended or row.job is job
        job.tell(why)

    def _fail_all(self, message: str) -> None:
        for row in list(self._present):
            self._fail(row.job, Failed("model", message))
        self._present, self._logits = [], torch.zeros(0, 1)
        # Nobody knows in what state the accident has left the old ones.
        self.rows = self._new_rows()

    def _new_rows(self) -> JoinedRows:
        limits = self.limits
        return make_rows(self.model.lm, self.model.traits, limits.context, limits.rows, limits.prefix_bytes)

    def _drop_ended(self) -> None:
        left = [at for at, row in enumerate(self._present) if not row.ended]
        if len(left) == len(self._present):
            return
        gone = [at for at, row in enumerate(self._present) if row.ended]
        with ONE_AT_A_TIME:
            self.rows.go_on(left, gone)
        self._logits = self._logits[torch.tensor(left, dtype=torch.int64, device=self._logits.device)]
        self._present = [self._present[at] for at in left]
