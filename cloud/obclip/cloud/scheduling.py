"""What goes into the scheduler and what comes out of it: plain data."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["finished", "cancelled", "queue_timeout", "service_timeout", "too_wide"]


@dataclass(frozen=True)
class Work:
    """One unit. kind: only rows of one kind share a batch. whole: all its rows must be in one batch, else they may be
    split over several, in order. boundary: whether a step of the job is done after it, so that it may be given up."""

    kind: Hashable
    rows: int
    whole: bool = False
    boundary: bool = True


@dataclass(frozen=True)
class SchedulerJob:
    """One request. id: never used twice. hold_rows: rows of memory it takes, from admission to end. arrived_s: on the
    clock of `now`."""

    id: int
    client: str
    units: tuple[Work, ...]
    hold_rows: int
    arrived_s: float


@dataclass(frozen=True)
class SchedulerLimits:
    """max_batch_rows: in one pass of the UNet. max_held_rows: of all admitted jobs. max_waiting_rows: in hold_rows; one
    job may always wait. queue_timeout_s: until admission. service_timeout_s: from then on."""

    max_batch_rows: int
    max_held_rows: int
    max_waiting_rows: int
    max_waiting_jobs: int
    queue_timeout_s: float
    service_timeout_s: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be more than 0")


@dataclass(frozen=True)
class Entry:
    """Rows [start, stop) of one unit of a job."""

    job_id: int
    unit_index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Batch:
    """At most one entry a job."""

    kind: Hashable
    entries: tuple[Entry, ...]

    @property
    def rows(self) -> int:
        return sum(e.stop - e.start for e in self.entries)


@dataclass(frozen=True)
class Done:
    job_id: int
    outcome: Outcome


@dataclass(frozen=True)
class SchedulerLoad:
    """full: whether any job would be refused now. wait_s: an estimate of when the next job ends and makes room."""

    waiting_jobs: int
    waiting_rows: int
    admitted_jobs: int
    held_rows: int
    full: bool
    wait_s: float


class Full(Exception):  # noqa: N818 (as queue.Full)
    """Not taken in: as much is waiting as may. retry_after_s: when it is worth trying again, more than 0."""

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
