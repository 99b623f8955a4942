"""The scheduler against a model of its rules: all calls, in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduled import works

from obclip.cloud.scheduler import Batch, Done, Full, Scheduler, SchedulerJob, SchedulerLimits, Work


@dataclass
class Model:
    """What the rules say of one job, as one list of all its rows. at: how many of them are done."""

    job: SchedulerJob
    at: int = 0
    admitted_s: float | None = None
    cancelled: bool = False
    too_wide: bool = False
    waited: int = 0  # batches since it was admitted or had a turn
    siblings: int = 0  # the most jobs that its client had admitted meanwhile, itself included
    clients: set[str] = field(default_factory=set)  # that had admitted work meanwhile

    def __post_init__(self) -> None:
        self.rows = [(u, r) for u, work in enumerate(self.job.units) for r in range(work.rows)]
        ends = [sum(w.rows for w in self.job.units[: u + 1]) for u in range(len(self.job.units))]
        self.boundaries = {0} | {end for end, work in zip(ends, self.job.units, strict=True) if work.boundary}

    def next(self) -> tuple[Work, int]:
        """The unit that is next, and how many rows of it are left."""
        unit, row = self.rows[self.at]
        return self.job.units[unit], self.job.units[unit].rows - row


CAP, HELD, WAITING_JOBS, WAITING_ROWS, QUEUE_S, SERVICE_S = 8, 12, 4, 14, 6.0, 15.0


class Machine(RuleBasedStateMachine):
    """All calls in any order, against the rules."""

    @initialize()
    def begin(self) -> None:
        self.scheduler = Scheduler(SchedulerLimits(CAP, HELD, WAITING_ROWS, WAITING_JOBS, QUEUE_S, SERVICE_S))
        self.now, self.ids, self.cap = 0.0, 0, CAP
        self.jobs: dict[int, Model] = {}  # that have not ended
        self.flight: Batch | None = None
        self.expected: Counter[Done] = Counter()  # ended and not told

    def flying(self, i: int) -> bool:
        return self.flight is not None and any(e.job_id == i for e in self.flight.entries)

    def end(self, i: int, outcome: str) -> None:
        del self.jobs[i]
        self.expected[Done(i, outcome)] += 1  # type: ignore[arg-type]

    def held(self, client: str | None = None) -> int:
        return sum(
            m.job.hold_rows for m in self.jobs.values() if m.admitted_s is not None and client in (None, m.job.client)
        )

    def waiting(self) -> list[Model]:
        return [m for m in self.jobs.values() if m.admitted_s is None]

    def expire(self) -> None:
        for m in self.waiting():
            if self.now >= m.job.arrived_s + QUEUE_S:
                self.end(m.job.id, "queue_timeout")

    def admit(self) -> None:
        while self.waiting():
            oldest = {}  # of each client
            for m in self.waiting():
                oldest.setdefault(m.job.client, m)
            m = min(oldest.values(), key=lambda m: (self.held(m.job.client), m.job.id))
            if self.held() + m.job.hold_rows > HELD:
                return
            m.admitted_s = self.now

    def check_told(self, told: Iterable[Done]) -> None:
        assert Counter(told) == self.expected
        self.expected.clear()

    @rule(dt=st.sampled_from([0.25, 1.0, 4.0]))
    def time_passes(self, dt: float) -> None:
        self.now += dt

    @rule(client=st.sampled_from("abc"), units=works(widest=10), hold=st.integers(1, 14))
    def add(self, client: str, units: tuple[Work, ...], hold: int) -> None:
        self.ids += 1
        new = SchedulerJob(self.ids, client, units, hold, self.now)
        if hold > HELD or any(w.whole and w.rows > self.cap for w in units):
            with pytest.raises(ValueError, match="ask for fewer"):
                self.scheduler.add(new)
            return
        self.expire()
        jobs, rows = len(self.waiting()), sum(m.job.hold_rows for m in self.waiting())
        if jobs and (jobs >= WAITING_JOBS or rows + hold > WAITING_ROWS):
            with pytest.raises(Full) as error:
                self.scheduler.add(new)
            assert error.value.retry_after_s > 0
            return
        self.scheduler.add(new)
        self.jobs[new.id] = Model(new)
        self.admit()

    @precondition(lambda self: self.flight is None)
    @rule()
    def schedule(self) -> None:
        self.expire()
        for i, m in list(self.jobs.items()):
            if m.admitted_s is not None and m.at in m.boundaries and self.now >= m.admitted_s + SERVICE_S:
                self.end(i, "service_timeout")
        self.admit()
        batch = self.scheduler.schedule(self.now)
        self.check_told(self.scheduler.take_ended())
        if batch is None:
            assert not self.jobs
        else:
            self.check_batch(batch)
            self.check_turns(batch)
            self.flight = batch

    @precondition(lambda self: self.flight is not None)
    @rule()
    def postprocess(self) -> None:
        batch, self.flight = self.flight, None
        for e in batch.entries:
            if e.job_id not in self.jobs:
                continue
            m = self.jobs[e.job_id]
            m.at += e.stop - e.start
            if m.at == len(m.rows):
                self.end(e.job_id, "finished")
            elif m.too_wide:
                self.end(e.job_id, "too_wide")
            elif m.at in m.boundaries and m.cancelled:
                self.end(e.job_id, "cancelled")
            elif m.at in m.boundaries and self.now >= m.admitted_s + SERVICE_S:
                self.end(e.job_id, "service_timeout")
        self.check_told(self.scheduler.postprocess(batch, self.now, 0.1))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, self.ids + 1))
        self.scheduler.cancel(i)
        m = self.jobs.get(i)
        if m is not None:
            m.cancelled = True
            if m.at in m.boundaries and not self.flying(i):
                self.end(i, "cancelled")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        ids = data.draw(st.sets(st.sampled_from(sorted(self.jobs)), max_size=2))
        self.scheduler.fail([*ids, 10_000])
        for i in ids:
            del self.jobs[i]

    @precondition(lambda self: self.cap > 2)
    @rule()
    def shrink(self) -> None:
        self.cap //= 2
        for i, m in list(self.jobs.items()):
            flies = next((e for e in self.flight.entries if e.job_id == i), None) if self.flight is not None else None
            after = m.at + (flies.stop - flies.start if flies else 0)
            units = {u for u, _ in m.rows[after:]}
            if any(m.job.units[u].whole and m.job.units[u].rows > self.cap for u in units):
                m.too_wide = True
                if not flies:
                    self.end(i, "too_wide")
        self.check_told(self.scheduler.shrink(self.cap))

    @precondition(lambda self: self.cap < CAP)
    @rule()
    def grow(self) -> None:
        self.cap = min(2 * self.cap, CAP)
        self.scheduler.grow(self.cap)

    def check_batch(self, batch: Batch) -> None:
        assert 0 < batch.rows <= self.cap
        took = {e.job_id: e for e in batch.entries}
        assert len(took) == len(batch.entries)
        for i, e in took.items():
            m = self.jobs[i]
            work, left = m.next()
            assert m.admitted_s is not None
            assert work.kind == batch.kind
            assert (e.unit_index, e.start) == m.rows[m.at]  # each row once and in order
            assert e.start < e.stop <= work.rows
            assert not work.whole or e.stop - e.start == work.rows
        for i, m in self.jobs.items():  # no room is left that any row could have
            work, left = m.next()
            if m.admitted_s is not None and work.kind == batch.kind:
                missing = left - (took[i].stop - took[i].start if i in took else 0)
                assert missing == 0 or batch.rows + (missing if work.whole else 1) > self.cap

    def check_turns(self, batch: Batch) -> None:
        admitted = [m for m in self.jobs.values() if m.admitted_s is not None]
        for m in admitted:
            m.clients |= {other.job.client for other in admitted}
            m.siblings = max(m.siblings, sum(other.job.client == m.job.client for other in admitted))
            m.waited += 1
            if any(e.job_id == m.job.id for e in batch.entries):
                assert m.waited <= m.siblings * (1 + (len(m.clients) - 1) * (2 * CAP + 1))
                m.waited, m.siblings, m.clients = 0, 0, set()

    @invariant()
    def load_is_right(self) -> None:
        load, waiting = self.scheduler.load, self.waiting()
        assert load.held_rows == self.held() <= HELD
        assert load.admitted_jobs == len(self.jobs) - len(waiting)
        assert (load.waiting_jobs, load.waiting_rows) == (len(waiting), sum(m.job.hold_rows for m in waiting))
        assert load.full == bool(waiting and (load.waiting_jobs >= WAITING_JOBS or load.waiting_rows >= WAITING_ROWS))

    def teardown(self) -> None:
        """When nothing is added, all that is left ends, at a row a batch or more."""
        if self.flight is not None:
            self.postprocess()
        for _ in range(sum(len(m.rows) - m.at for m in self.jobs.values()) + 1):
            self.schedule()
            if self.flight is not None:
                self.postprocess()
        assert not self.jobs


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40)
