"""The scheduler, by example: what joins, leaves, waits, is refused, is given up."""

from __future__ import annotations

import subprocess
import sys

import pytest
from scheduled import FULL, SHALLOW, drained, job, limits, run, shares

from obclip.cloud.scheduler import Batch, Done, Entry, Full, Scheduler, SchedulerJob, Work


def test_a_job_runs_unit_by_unit_and_finishes():
    scheduler = Scheduler(limits())
    scheduler.add(job(1, units=2, rows=4))
    assert [(shares(b), d) for b, d in drained(scheduler)] == [({1: 4}, ()), ({1: 4}, (Done(1, "finished"),))]
    assert scheduler.load.admitted_jobs == scheduler.load.held_rows == 0


def test_jobs_join_and_leave_at_any_step():
    scheduler = Scheduler(limits())
    scheduler.add(job(1, units=3, rows=2))
    assert shares(run(scheduler)[0]) == {1: 2}
    scheduler.add(job(2, units=1, rows=2))
    assert shares(run(scheduler)[0]) == {1: 2, 2: 2}
    assert run(scheduler) == (Batch(FULL, (Entry(1, 2, 0, 2),)), (Done(1, "finished"),))


def test_a_job_may_join_while_a_batch_is_in_flight():
    scheduler = Scheduler(limits())
    scheduler.add(job(1))
    batch = scheduler.schedule(0)
    scheduler.add(job(2))
    assert batch is not None
    scheduler.postprocess(batch, 0, 0.1)
    assert shares(run(scheduler)[0]) == {1: 4, 2: 4}


def test_only_rows_of_a_kind_share_a_batch():
    scheduler = Scheduler(limits())
    scheduler.add(job(1, units=1, kind=FULL))
    scheduler.add(job(2, units=1, kind=SHALLOW))
    assert [(b.kind, shares(b)) for b, _ in drained(scheduler)] == [(FULL, {1: 4}), (SHALLOW, {2: 4})]


def test_a_unit_is_split_to_fill_a_batch():
    scheduler = Scheduler(limits(max_batch_rows=4))
    for i in (1, 2):
        scheduler.add(job(i, units=1, rows=3))
    assert [[(e.job_id, e.start, e.stop) for e in b.entries] for b, _ in drained(scheduler)] == [
        [(1, 0, 3), (2, 0, 1)],
        [(2, 1, 3)],
    ]


def test_a_whole_unit_is_not_split_and_narrower_ones_fill_up():
    scheduler = Scheduler(limits(max_batch_rows=4))
    for i, rows in enumerate((3, 3, 1)):
        scheduler.add(job(i, units=1, rows=rows, whole=True))
    assert [shares(b) for b, _ in drained(scheduler)] == [{0: 3, 2: 1}, {1: 3}]


def test_a_wide_job_is_not_starved_by_narrow_ones():
    scheduler = Scheduler(limits(max_held_rows=10))
    for i in range(5):
        scheduler.add(job(i, "narrow", units=2 + i, rows=1, hold=2))
    scheduler.add(job(5, "wide", units=1, hold=10))
    begun = []
    for i in range(6, 30):
        scheduler.add(job(i, "narrow", units=2, rows=1, hold=2))
        batch, _ = run(scheduler)
        begun += [j for j in shares(batch) if j not in begun]
    assert begun[:7] == [0, 1, 2, 3, 4, 5, 6]


def test_admission_is_fair_between_clients_and_first_come_first_served_within_one():
    scheduler = Scheduler(limits(max_held_rows=2))
    for i in range(6):
        scheduler.add(job(i, "many", units=1))
    scheduler.add(job(6, "one", units=1))
    order = [j for b, _ in drained(scheduler) for j in shares(b)]
    assert order == [0, 1, 6, 2, 3, 4, 5]


def test_what_waits_is_cancelled_at_once():
    scheduler = Scheduler(limits(max_held_rows=1))
    scheduler.add(job(1))
    scheduler.add(job(2))
    scheduler.cancel(2)
    scheduler.cancel(2)
    scheduler.cancel(99)
    assert scheduler.take_ended() == (Done(2, "cancelled"),)
    assert scheduler.take_ended() == ()


def test_what_runs_is_cancelled_at_the_next_boundary():
    scheduler = Scheduler(limits())
    inner, last = Work(FULL, 2, boundary=False), Work(FULL, 2)
    scheduler.add(SchedulerJob(1, "a", (inner, inner, last, inner, last), 1, 0.0))
    batch = scheduler.schedule(0)
    assert batch is not None
    scheduler.cancel(1)
    assert scheduler.postprocess(batch, 0, 0.1) == ()
    assert [d for _, d in drained(scheduler)] == [(), (Done(1, "cancelled"),)]


def test_a_job_cancelled_during_its_last_batch_has_finished():
    scheduler = Scheduler(limits())
    scheduler.add(job(1, units=1))
    batch = scheduler.schedule(0)
    assert batch is not None
    scheduler.cancel(1)
    assert scheduler.postprocess(batch, 0, 0.1) == (Done(1, "finished"),)


def test_waiting_too_long_ends_in_a_queue_timeout():
    scheduler = Scheduler(limits(max_held_rows=1, queue_timeout_s=5))
    scheduler.add(job(1, units=9))
    scheduler.add(job(2, at=1.0))
    run(scheduler, 5.9)
    assert scheduler.load.waiting_jobs == 1
    batch, done = run(scheduler, 6.0)
    assert (shares(batch), done) == ({1: 4}, (Done(2, "queue_timeout"),))


def test_running_too_long_ends_in_a_service_timeout_at_a_boundary():
    scheduler = Scheduler(limits(service_timeout_s=5))
    inner, last = Work(FULL, 2, boundary=False), Work(FULL, 2)
    scheduler.add(SchedulerJob(1, "a", (inner, last, last), 1, 0.0))
    assert [run(scheduler, now)[1] for now in (6.0 - 2, 6.0)] == [(), (Done(1, "service_timeout"),)]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    scheduler = Scheduler(limits(max_held_rows=1, max_waiting_jobs=1))
    scheduler.add(job(1, units=10, rows=4))
    batch = scheduler.schedule(0)
    assert batch is not None
    for _ in range(30):  # 2 seconds a row, measured again and again
        scheduler.postprocess(batch, 0, 8.0)
        scheduler.fail([1])
        scheduler.add(job(1, units=10, rows=4))
        batch = scheduler.schedule(0)
        assert batch is not None
    scheduler.add(job(2, units=10, rows=4))
    assert scheduler.load.full
    with pytest.raises(Full) as error:
        scheduler.add(job(3))
    assert error.value.retry_after_s == pytest.approx(80, rel=0.01)  # a job is 40 rows


def test_rows_that_wait_are_bounded_too_but_one_job_may_always_wait():
    scheduler = Scheduler(limits(max_held_rows=8, max_waiting_rows=5))
    scheduler.add(job(1, hold=8))
    scheduler.add(job(2, hold=8))
    with pytest.raises(Full, match="1 requests of 8 rows"):
        scheduler.add(job(3, hold=1))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (job(1, rows=9, whole=True), "9 rows have to run in one pass, which takes 8"),
        (job(1, hold=101), "holds 101 rows in memory, which takes 100"),
        (job(1, units=0), "needs a unit"),
        (job(1, rows=0), "at least one row"),
        (job(1, hold=0), "at least one row"),
        (job(7), "here already"),
    ],
)
def test_a_job_that_could_never_run_is_refused(bad: SchedulerJob, says: str):
    scheduler = Scheduler(limits())
    scheduler.add(job(7))
    with pytest.raises(ValueError, match=says):
        scheduler.add(bad)
    assert scheduler.load.admitted_jobs == 1


def test_limits_that_would_serve_nobody_are_refused():
    with pytest.raises(ValueError, match="max_batch_rows is 0"):
        limits(max_batch_rows=0)


def test_one_batch_is_in_flight_at_a_time():
    scheduler = Scheduler(limits())
    scheduler.add(job(1))
    batch = scheduler.schedule(0)
    assert batch is not None
    with pytest.raises(RuntimeError, match="postprocess it first"):
        scheduler.schedule(0)
    scheduler.postprocess(batch, 0, 0.1)
    with pytest.raises(RuntimeError, match="not in flight"):
        scheduler.postprocess(batch, 0, 0.1)


def test_failed_jobs_are_dropped_and_the_rest_of_their_batch_counts():
    scheduler = Scheduler(limits())
    for i in (1, 2):
        scheduler.add(job(i, units=1))
    batch = scheduler.schedule(0)
    assert batch is not None
    scheduler.fail([1, 99])
    assert scheduler.load.held_rows == 1
    assert scheduler.postprocess(batch, 0, 0.1) == (Done(2, "finished"),)


def test_shrinking_ends_what_no_longer_fits():
    scheduler = Scheduler(limits())
    scheduler.add(job(1, units=2, rows=6, whole=True))
    scheduler.add(job(2, units=2, rows=6))
    scheduler.add(job(3, units=2, rows=8, whole=True))
    scheduler.add(SchedulerJob(4, "a", (Work(FULL, 2), Work(FULL, 4)), 1, 0.0))
    batch = scheduler.schedule(0)
    assert shares(batch) == {1: 6, 2: 2}
    assert scheduler.shrink(4) == (Done(3, "too_wide"),)
    assert batch is not None
    assert scheduler.postprocess(batch, 0, 0.1) == (Done(1, "too_wide"),)
    assert all(b.rows <= 4 for b, _ in drained(scheduler))
    with pytest.raises(ValueError, match="it can be made 1 to 4, not 8"):
        scheduler.shrink(8)


def test_a_job_that_no_longer_fits_ends_so_though_it_is_cancelled_too():
    scheduler = Scheduler(limits())
    scheduler.add(SchedulerJob(1, "a", (Work(FULL, 2, boundary=False), Work(FULL, 8, whole=True)), 1, 0.0))
    batch = scheduler.schedule(0)
    assert batch is not None
    scheduler.shrink(4)
    scheduler.cancel(1)
    assert scheduler.postprocess(batch, 0, 0.1) == (Done(1, "too_wide"),)


def test_a_last_wide_unit_in_flight_does_not_end_a_job_that_fits_from_then_on():
    scheduler = Scheduler(limits())
    scheduler.add(SchedulerJob(1, "a", (Work(FULL, 8, whole=True), Work(FULL, 4, whole=True)), 1, 0.0))
    batch = scheduler.schedule(0)
    assert scheduler.shrink(4) == ()
    assert batch is not None
    assert scheduler.postprocess(batch, 0, 0.1) == ()
    assert run(scheduler)[1] == (Done(1, "finished"),)


def test_the_same_calls_give_the_same_batches():
    def batches() -> list[Batch]:
        scheduler = Scheduler(limits())
        for i in range(12):
            scheduler.add(job(i, "abc"[i % 3], units=3 + i % 2, rows=1 + i % 5, kind=(FULL, SHALLOW)[i % 4 == 0]))
        return [b for b, _ in drained(scheduler)]

    assert batches() == batches()


def test_it_loads_neither_torch_nor_numpy():
    code = "import sys, obclip.cloud.scheduler; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
