"""Which rows of which requests the UNet runs next: no tensors, no clock and no threads, and the same every time.

A job is a sequence of units, one after the other; a unit is a pass of the UNet over some rows. The engine's loop is
`schedule`, run the batch, `postprocess`; `add` and `cancel` may come at any time, under the engine's lock. A job is
given up (cancelled, out of time) before it begins or between two of its steps, never with rows in flight.

Admission goes by memory (hold_rows). The client that holds least is next, the one whose job has waited longest among
equals, and nobody is admitted before it: a wide job is not passed by narrow ones. Which admitted rows run next is
obclip.cloud.turns, with what it promises about fairness and waiting.
"""

from __future__ import annotations

from collections.abc import Iterable

from obclip.cloud.scheduling import (
    Batch,
    Done,
    Entry,
    Full,
    Outcome,
    SchedulerJob,
    SchedulerLimits,
    SchedulerLoad,
    Work,
)
from obclip.cloud.turns import Client, Part, Run, Turns

__all__ = [
    "Batch", "Done", "Entry", "Full", "Outcome", "Scheduler", "SchedulerJob", "SchedulerLimits", "SchedulerLoad", "Work"
]  # fmt: skip

_SECONDS_PER_ROW = 0.05  # before anything was measured
_NEWEST = 0.3  # weight of the newest batch in the average of seconds per row
_SHORTEST_WAIT_S = 0.1


class Scheduler:
    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self._cap = limits.max_batch_rows
        self._runs: dict[int, Run] = {}  # all that have not ended, in order of arrival
        self._arrivals = 0
        self._turns = Turns()
        self._flight: tuple[Batch, list[Part]] | None = None
        self._ended: list[Done] = []
        self._row_s = _SECONDS_PER_ROW

    @property
    def load(self) -> SchedulerLoad:
        waiting = [r for r in self._runs.values() if r.admitted_s is None]
        rows, limits = sum(r.job.hold_rows for r in waiting), self.limits
        full = bool(waiting) and (len(waiting) >= limits.max_waiting_jobs or rows >= limits.max_waiting_rows)
        work_s = self._row_s * sum(r.left for r in self._runs.values()) / max(len(self._runs), 1)
        admitted = len(self._runs) - len(waiting)
        return SchedulerLoad(len(waiting), rows, admitted, self._held, full, max(work_s, _SHORTEST_WAIT_S))

    def add(self, job: SchedulerJob) -> None:
        """Admit `job`, or let it wait. Full if too much waits; ValueError if it could never run."""
        self._check(job)
        self._sweep([r for r in self._runs.values() if r.admitted_s is None], job.arrived_s)
        load = self.load
        rows = load.waiting_rows + job.hold_rows
        if load.full or (load.waiting_jobs and rows > self.limits.max_waiting_rows):
            raise Full(f"{load.waiting_jobs} requests of {load.waiting_rows} rows are waiting", load.wait_s)
        run = self._runs[job.id] = Run(job, self._arrivals, sum(w.rows for w in job.units))
        self._arrivals += 1
        self._turns.clients.setdefault(job.client, Client()).waiting.append(run)
        self._admit(job.arrived_s)

    def schedule(self, now: float) -> Batch | None:
        """The next batch, which is then in flight until `postprocess`; None if there is nothing to do at all.

        For jobs that end here ask `take_ended`. RuntimeError if a batch is in flight.
        """
        if self._flight is not None:
            raise RuntimeError("a batch is in flight, and there is one at a time: postprocess it first")
        self._sweep(list(self._runs.values()), now)
        self._admit(now)
        parts = self._turns.take(self._cap)
        if not parts:
            return None
        entries = tuple(Entry(run.job.id, run.unit, run.row, run.row + rows) for run, rows in parts)
        batch = Batch(parts[0][0].work.kind, entries)
        self._flight = batch, parts
        return batch

    def postprocess(self, batch: Batch, now: float, seconds: float) -> tuple[Done, ...]:
        """The batch is over; its rows are done, but for those of failed jobs. What has ended, as `take_ended`.

        seconds: what the batch took. RuntimeError for a batch that is not in flight.
        """
        if self._flight is None or self._flight[0] is not batch:
            raise RuntimeError("this batch is not in flight: postprocess what schedule gave, once")
        parts, self._flight = [(run, rows) for run, rows in self._flight[1] if not run.ended], None
        if parts:
            self._row_s += _NEWEST * (seconds / batch.rows - self._row_s)
        for run, rows in parts:
            run.advance(rows)
        self._sweep([run for run, _ in parts], now)
        return self.take_ended()

    def take_ended(self) -> tuple[Done, ...]:
        """What has ended and was not told yet; failed jobs are never among it."""
        ended, self._ended = tuple(self._ended), []
        return ended

    def cancel(self, job_id: int) -> None:
        """Give a job up: now if it waits or is between two steps, else at the next boundary. One whose last step is in
        flight finishes all the same. Nothing happens for a job that is not here, or was cancelled already."""
        run = self._runs.get(job_id)
        if run is not None and run.stop is None:
            run.stop = "cancelled"
            if run.at_boundary and not self._flies(run):
                self._end(run, run.stop)

    def fail(self, job_ids: Iterable[int]) -> None:
        """Drop jobs now, wherever they are; nothing more is said of them. A batch in flight stays so."""
        for run in [self._runs[i] for i in job_ids if i in self._runs]:
            self._end(run, None)

    def shrink(self, max_batch_rows: int) -> tuple[Done, ...]:
        """Make batches of at most so many rows from now on. What has ended, as `take_ended`: jobs that no longer fit
        are too_wide; one in flight ends with its batch. ValueError unless it is from 1 to what it was."""
        if not 1 <= max_batch_rows <= self._cap:
            raise ValueError(f"max_batch_rows is {self._cap}; it can be made 1 to {self._cap}, not {max_batch_rows}")
        self._cap = max_batch_rows
        for run in list(self._runs.values()):
            flies = self._flies(run)  # so all of a whole unit does
            if any(w.whole and w.rows > self._cap for w in run.job.units[run.unit + flies :]):
                run.stop = "too_wide"
                if not flies:
                    self._end(run, run.stop)
        return self.take_ended()

    def grow(self, max_batch_rows: int) -> None:
        """Make batches of up to so many rows again. ValueError unless it is from what it was to the limit."""
        if not self._cap <= max_batch_rows <= self.limits.max_batch_rows:
            most = self.limits.max_batch_rows
            raise ValueError(f"max_batch_rows is {self._cap}; it can grow to {most}, not be {max_batch_rows}")
        self._cap = max_batch_rows

    @property
    def _held(self) -> int:
        return sum(c.held for c in self._turns.active)

    def _check(self, job: SchedulerJob) -> None:
        widest = max((w.rows for w in job.units if w.whole), default=0)
        if job.id in self._runs:
            raise ValueError(f"job {job.id} is here already; give every job an id of its own")
        if not job.units or job.hold_rows < 1 or any(w.rows < 1 for w in job.units):
            raise ValueError("a job needs a unit, and at least one row in every unit and in memory")
        if widest > self._cap:
            raise ValueError(
                f"{widest} rows have to run in one pass, which takes {self._cap}; ask for fewer candidates"
            )
        if job.hold_rows > self.limits.max_held_rows:
            held = self.limits.max_held_rows
            raise ValueError(f"it holds {job.hold_rows} rows in memory, which takes {held}; ask for fewer candidates")

    def _admit(self, now: float) -> None:
        while queues := [c for c in self._turns.clients.values() if c.waiting]:
            client = min(queues, key=lambda c: (c.held, c.waiting[0].order))
            if self._held + client.waiting[0].job.hold_rows > self.limits.max_held_rows:
                return  # what is freed next is for this one
            self._turns.admit(client, now)

    def _sweep(self, runs: list[Run], now: float) -> None:
        """End those of `runs`, none of them in flight, that are complete or can be given up now."""
        for run in runs:
            outcome = self._outcome(run, now)
            if outcome is not None:
                self._end(run, outcome)

    def _outcome(self, run: Run, now: float) -> Outcome | None:
        if run.complete:
            return "finished"
        if run.stop == "too_wide":
            return "too_wide"  # it would never get to a boundary
        if not run.at_boundary:
            return None
        if run.stop is not None:
            return run.stop
        if run.admitted_s is None:
            return "queue_timeout" if now >= run.job.arrived_s + self.limits.queue_timeout_s else None
        return "service_timeout" if now >= run.admitted_s + self.limits.service_timeout_s else None

    def _flies(self, run: Run) -> bool:
        return self._flight is not None and any(r is run for r, _ in self._flight[1])

    def _end(self, run: Run, outcome: Outcome | None) -> None:
        """outcome: None if nobody is to be told."""
        client = self._turns.clients[run.job.client]
        if run.admitted_s is None:
            client.waiting.remove(run)
        else:
            client.admitted.remove(run)
        del self._runs[run.job.id]
        run.ended = True
        if outcome is not None:
            self._ended.append(Done(run.job.id, outcome))
