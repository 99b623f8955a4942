"""Jobs, an engine with a UNet that can be held up and broken, and what tests ask of both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from serving import LIMIT_S

from obclip.cloud.batch import Batcher
from obclip.cloud.engine import execute
from obclip.cloud.model import CloudModel
from obclip.cloud.plan import Policy, build_plan
from obclip.cloud.policies import (
    DeepCache,
    Prefix,
    PublishedCache,
    PublishedReuse,
    SharedUnconditional,
)
from obclip.cloud.scheduler import SchedulerLimits
from obclip.cloud.stepper import StepEngine
from obclip.cloud.work import Event, Job, Ticket
from obclip.core.pairs import load_pair
from obclip.core.wire import Request, Response

PAIR = load_pair("emoji")
DEPTH = 4  # up layers that a cached pass runs
PEOPLE = sorted(f"a {age} {who}" for age in ("young", "old", "tall", "dark") for who in ("man", "woman"))
LIMITS = SchedulerLimits(
    max_batch_rows=16, max_held_rows=64, max_waiting_rows=64, max_waiting_jobs=16, queue_timeout_s=1e6,
    service_timeout_s=1e6,
)  # fmt: skip
FIRST_T, OTHER_T = 8, 7  # numbers of steps, of which only the first have the same time


def job(n: int = 2, k: int = 3, policies: Sequence[Policy] = (), client: str = "c", **change: Any) -> Job:
    """With guidance: 2 n rows a step where nothing is shared."""
    asked = Request(
        pair=PAIR.digest, candidates=tuple(PEOPLE[:n]), negative_prompt="red", seed=n + 10 * k, height=64, width=64,
        steps=FIRST_T, handoff=k, guidance=3.5, solver="dpm++2m",
    )  # fmt: skip
    asked = replace(asked, **change)
    return Job(asked, build_plan(asked, policies, max_rows=16), client)


SHARING = (SharedUnconditional(), Prefix(2), DeepCache(3, (0, 2, 4)))
PUBLISHED = (PublishedCache(2, 3, DEPTH), PublishedReuse(2))
MIXED = [
    job(1, 2, (), "a"),
    job(3, 2, (), "b", steps=OTHER_T, solver="ddim"),
    job(4, 5, SHARING, "a"),
    job(3, 4, PUBLISHED, "b"),
    job(2, 4, PUBLISHED, "c", seed=9),
    job(5, 2, (SharedUnconditional(1),), "c", guidance=7.0),
    job(2, 4, (DeepCache(1, (0, 2)),), "d", want_x0=True),
    job(2, 1, (), "d", guidance=1.0, negative_prompt=""),
]


class Forward:
    """The UNet's forward. free: unless, each call waits for `go`. at: what happens instead of, or after, the n-th
    call, from 1; always: of every call."""

    def __init__(self, model: CloudModel, free: bool = True) -> None:
        self.layered, self.free, self.calls = model.layered, free, 0
        self.entered, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.at: dict[int, Callable[[Any], Any]] = {}
        self.always: Callable[[Any], Any] = lambda inputs: None

    def __call__(self, x: Any, inputs: Any, *others: Any) -> Any:
        self.calls += 1
        self.entered.release()
        if not self.free:
            assert self.go.acquire(timeout=LIMIT_S)
        broken = self.at.get(self.calls, self.always)(inputs)
        output, features = self.layered(x, inputs, *others)
        return (output if broken is None else torch.where(broken[:, None, None, None], torch.nan, output)), features

    def reached(self) -> None:
        assert self.entered.acquire(timeout=LIMIT_S)

    def release(self) -> None:
        """Let all calls pass, from now on."""
        self.free = True
        self.go.release(1000)


def raising(error: Exception) -> Callable[[Any], None]:
    def act(_: Any) -> None:
        raise error

    return act


def all_rows(inputs: Any) -> torch.Tensor:
    return torch.ones(len(inputs.timestep), dtype=torch.bool)


@contextmanager
def engine_of(
    model: CloudModel,
    forward: Forward | None = None,
    now: list[float] | None = None,
    bucket: Callable[[int], int] | None = None,
    row_by_row: bool = False,
    **limits: float,
) -> Iterator[tuple[StepEngine, list[Event]]]:
    """Not started, so that what is submitted before `start` begins in one batch."""
    forward = forward or Forward(model)
    clock = (lambda: now[0]) if now else lambda: 0.0
    batcher = Batcher(forward, bucket, row_by_row)
    engine = StepEngine(model, PAIR, replace(LIMITS, **limits), batcher, clock=clock)  # type: ignore[arg-type]
    seen: list[Event] = []
    engine.on_event = seen.append
    try:
        yield engine, seen
    finally:
        forward.release()
        engine.close(LIMIT_S)
        assert not engine._thread.is_alive()


def answers(engine: StepEngine, jobs: Sequence[Job]) -> list[Response]:
    tickets = [engine.submit(one) for one in jobs]
    engine.start()
    return [ticket.future.result(LIMIT_S) for ticket in tickets]


def failure(ticket: Ticket) -> BaseException | None:
    return ticket.future.exception(LIMIT_S)


def kinds(seen: list[Event]) -> list[str]:
    return [e.kind for e in seen]


def step_rows(seen: list[Event]) -> list[float | str]:
    return [e.values["rows"] for e in seen if e.kind == "step"]


def alone(model: CloudModel, one: Job) -> Response:
    return execute(one.plan, one.request, model, PAIR)


def assert_near(got: Response, expected: Response) -> None:
    """Within a unit of float16 in the last place of 4 to 8."""
    assert (got.step, got.schedule, got.model) == (expected.step, expected.schedule, expected.model)
    np.testing.assert_allclose(got.latents.astype(float), expected.latents.astype(float), atol=4e-3)
    assert (got.x0 is None) == (expected.x0 is None)
    if got.x0 is not None and expected.x0 is not None:
        np.testing.assert_allclose(got.x0.astype(float), expected.x0.astype(float), atol=4e-3)
