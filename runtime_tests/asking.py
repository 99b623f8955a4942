"""A request, ways to send it to a server of the test, and an engine that answers when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import httpx
import numpy as np

from obclip.cloud import errors
from obclip.cloud.work import Event, Job, Load, Span, Ticket, ignore
from obclip.core.errors import RunError
from obclip.core.pairs import load_pair
from obclip.core.problems import Problem
from obclip.core.wire import Request, Response

PAIR = load_pair("emoji")
REQUEST = Request(
    pair=PAIR.digest, candidates=("a man", "a woman"), negative_prompt="", seed=5, height=64, width=64, steps=6,
    handoff=2, guidance=3.5, solver="dpm++2m",
)  # fmt: skip
ROWS = 8
BODY = REQUEST.encode()
JSON = {"content-type": "application/json"}
LIMIT_S = 30


class FakeEngine:
    """Keeps what it is given until told how it ended. `error`: what `submit` raises."""

    def __init__(self) -> None:
        self.on_event: Callable[[Event], None] = ignore
        self.load, self.error = Load(), None
        self.jobs: list[Job] = []
        self.futures: list[Future[Response]] = []
        self.cancelled = self.closed = 0

    load: Load
    error: RunError | None

    def start(self) -> None:
        pass

    def submit(self, job: Job) -> Ticket:
        if self.error is not None:
            raise self.error
        future: Future[Response] = Future()
        future.set_running_or_notify_cancel()
        self.jobs.append(job)
        self.futures.append(future)

        def cancel() -> None:
            if not future.done():
                self.cancelled += 1
                future.set_exception(errors.CancelledError("cancelled"))

        return Ticket(future, cancel, [Span("queue", 1, 2), Span("encode", 2, 3), Span("denoise", 3, 4)])

    def close(self, drain_s: float) -> None:
        self.closed += 1
        for future in self.futures:
            if not future.done():
                future.set_exception(errors.DrainingError("closed"))

    def answer(self, schedule: str = "b" * 64) -> None:
        """All that is in hand, with noise."""
        for job, future in zip(self.jobs, self.futures, strict=True):
            if not future.done():
                shape = (len(job.request.candidates), *PAIR.latent_shape)
                latents = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
                future.set_result(Response(latents, None, job.request.handoff, schedule, "c" * 64))


def post(url: str, body: bytes = BODY, **headers: str) -> httpx.Response:
    return httpx.post(url + "/v1/denoise", content=body, headers={**JSON, **headers}, timeout=LIMIT_S)


class Later:
    """A request in a thread of its own."""

    def __init__(self, url: str, body: bytes = BODY) -> None:
        self.got: list[httpx.Response] = []
        self.thread = threading.Thread(target=lambda: self.got.append(post(url, body)))
        self.thread.start()

    def result(self) -> httpx.Response:
        self.thread.join(LIMIT_S)
        return self.got[0]


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.decode(answer.content, answer.status_code)
    assert problem.status == answer.json()["status"] == answer.status_code
    return problem.slug
