"""A request in the step engine: what it is, how far it is, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from obclip.cloud import errors
from obclip.cloud.denoising import Denoising
from obclip.cloud.plan import Pass, Step
from obclip.cloud.scheduling import Outcome, SchedulerJob, Work
from obclip.cloud.work import Job, Span
from obclip.core.errors import RunError
from obclip.core.wire import Response

OUTCOMES: dict[Outcome, Callable[[], RunError]] = {
    "cancelled": lambda: errors.CancelledError("the request was cancelled"),
    "queue_timeout": lambda: errors.QueueTimeoutError("its turn did not come in time"),
    "service_timeout": lambda: errors.ServiceTimeoutError("it was not done in time"),
    "too_wide": lambda: errors.OutOfMemoryError("it no longer fits into a batch"),
}  # all but "finished"


@dataclass(eq=False)
class Live:
    """units: the request's passes in order, with the step of each. *_s: on the engine's clock. state: from when it
    began."""

    job: Job
    queued_s: float
    queued_ns: int = field(default_factory=time.time_ns)
    future: Future[Response] = field(default_factory=Future)
    spans: list[Span] = field(default_factory=list)
    state: Denoising | None = None
    started_s: float = 0.0
    denoise_ns: int = 0
    units: list[tuple[Step, Pass]] = field(init=False)

    def __post_init__(self) -> None:
        self.units = [(step, one) for step in self.job.plan.steps for one in step.passes]

    def for_scheduler(self, number: int) -> SchedulerJob:
        works = tuple(
            Work(one.part, len(one.rows), whole=bool(one.pivots), boundary=one is step.passes[-1])
            for step, one in self.units
        )
        return SchedulerJob(number, self.job.client, works, self.job.plan.widest, self.queued_s)
