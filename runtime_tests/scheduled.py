"""Jobs for the scheduler, and loops that run them, for its tests."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st

from obclip.cloud.scheduler import Batch, Done, Scheduler, SchedulerJob, SchedulerLimits, Work

FULL, SHALLOW = "full", "shallow"


def limits(**changes: float) -> SchedulerLimits:
    given = {
        "max_batch_rows": 8, "max_held_rows": 100, "max_waiting_rows": 100, "max_waiting_jobs": 100,
        "queue_timeout_s": 60.0, "service_timeout_s": 60.0,
    }  # fmt: skip
    return SchedulerLimits(**{**given, **changes})  # type: ignore[arg-type]


def job(
    id: int, client: str = "a", units: int = 2, rows: int = 4, hold: int = 1, at: float = 0.0, **work
) -> SchedulerJob:
    return SchedulerJob(id, client, (Work(work.pop("kind", FULL), rows, **work),) * units, hold, at)


def shares(batch: Batch | None) -> dict[int, int]:
    """Rows of each job in a batch."""
    assert batch is not None
    return {e.job_id: e.stop - e.start for e in batch.entries}


def run(scheduler: Scheduler, now: float = 0.0) -> tuple[Batch | None, tuple[Done, ...]]:
    batch = scheduler.schedule(now)
    return batch, scheduler.postprocess(batch, now, 0.1) if batch else scheduler.take_ended()


def drained(scheduler: Scheduler) -> Iterator[tuple[Batch, tuple[Done, ...]]]:
    while True:
        batch, done = run(scheduler)
        if batch is None:
            return
        yield batch, done


@st.composite
def works(draw: st.DrawFn, widest: int = 6) -> tuple[Work, ...]:
    one = st.builds(Work, st.sampled_from([FULL, SHALLOW]), st.integers(1, widest), st.booleans(), st.booleans())
    return tuple(draw(st.lists(one, min_size=1, max_size=6)))
