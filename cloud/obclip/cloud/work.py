"""The seam between the service, which speaks HTTP, and an engine, which denoises: jobs in, futures out.

The service knows no tensors, an engine knows no HTTP. Whatever an engine puts into a future or an event is free of
prompts: errors are made from fixed words (obclip.cloud.errors), events hold sizes and seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

from obclip.cloud.plan import Plan
from obclip.core.wire import Request, Response

EventKind = Literal[
    "queued",  # rows
    "started",  # rows, wait_s
    "step",  # rows, part ("full", "shallow-3", ...), seconds: one step of the UNet
    "finished",  # rows, seconds
    "failed",  # reason
    "cancelled",
    "timeout",  # reason: "queue" or "service"
    "nan_rerun",  # rows
    "oom",  # rows: the row cap from now on, where there is one
    "dead",
]


@dataclass(frozen=True)
class Job:
    """client: the name of the API key it came under, or "anonymous"."""

    request: Request
    plan: Plan
    client: str = "anonymous"


@dataclass(frozen=True)
class Load:
    """What an engine has in hand. Rows: of the widest pass of each request in the step engine, which holds as many in
    memory; of each whole plan, one an evaluation of the UNet, in the serial engine.

    row_capacity: the most rows that may wait. full: whether a job would be refused now, whatever its size.
    wait_s: an estimate of when there is room again.
    """

    requests_waiting: int = 0
    requests_running: int = 0
    rows_waiting: int = 0
    rows_running: int = 0
    row_capacity: int = 0
    full: bool = False
    wait_s: float = 1.0


@dataclass(frozen=True)
class Span:
    """A part of a request's time in the engine ("queue", "encode", "denoise"), in nanoseconds of `time.time_ns`."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class Event:
    """Something an engine did, for metrics. values: as listed at EventKind."""

    kind: EventKind
    values: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ticket:
    """A job taken in. future: always ends, with a response or with one of obclip.cloud.errors. cancel: gives the job
    up, at once while it waits, else at the next step boundary. spans: complete once the future is."""

    future: Future[Response]
    cancel: Callable[[], None]
    spans: list[Span] = field(default_factory=list)


class Engine(Protocol):
    """What denoises. All methods may be called from any thread.

    on_event: set by the service before `start`; called from the engine's threads, never fails, returns at once.
    """

    on_event: Callable[[Event], None]

    @property
    def load(self) -> Load: ...

    def start(self) -> None:
        """Warm up; returns when ready."""
        ...

    def submit(self, job: Job) -> Ticket:
        """Take `job` in. OverloadedError, at once, if there is no room; DrainingError once it is closed,
        DeadEngineError once it is broken."""
        ...

    def close(self, drain_s: float) -> None:
        """Take in nothing more, finish what is in work, for `drain_s` at most; give up the rest, DrainingError."""
        ...


def ignore(event: Event) -> None:
    """An `on_event` for whoever does not want to know."""
