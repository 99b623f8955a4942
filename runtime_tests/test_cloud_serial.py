"""The engine of one worker thread: queue, deadlines, cancellation, faults, draining. No model, no clock but our own."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from serving import until

from obclip.cloud import errors, serial
from obclip.cloud.plan import plain_plan
from obclip.cloud.serial import QueueLimits, SerialEngine
from obclip.cloud.work import Event, Job
from obclip.core.wire import Request, Response

REQUEST = Request(
    pair="a" * 64, candidates=("a man", "a woman"), negative_prompt="", seed=5, height=64, width=64, steps=4, handoff=2,
    guidance=3.5, solver="ddim",
)  # fmt: skip
JOB = Job(REQUEST, plain_plan(REQUEST))  # 2 candidates x 2 branches x 2 steps
ROWS = 8
ANSWER = Response(np.zeros((2, 4, 16, 16), np.float16), None, 2, "b" * 64, "c" * 64)
LIMIT_S = 20


class Model:
    """Runs jobs as `execute` does; stops before each step until told to go on."""

    def __init__(self, free: bool = True):
        self.go = threading.Semaphore(10_000 if free else 0)
        self.at_step = threading.Semaphore(0)
        self.fail: dict[int, Exception] = {}
        self.done: list[Job] = []

    def __call__(self, job: Job, stop: Callable[[], bool]) -> Response:
        for i in range(len(job.plan.steps) + 1):  # encoding, then the steps
            if stop():
                raise RuntimeError("stopped")
            self.at_step.release()
            assert self.go.acquire(timeout=LIMIT_S)
            if i in self.fail:
                raise self.fail.pop(i)
        self.done.append(job)
        return ANSWER


@contextmanager
def engine_of(
    model: Model, now: list[float] | None = None, **limits: float
) -> Iterator[tuple[SerialEngine, list[Event]]]:
    engine = SerialEngine(model, QueueLimits(**limits), clock=(lambda: now[0]) if now else lambda: 0.0)
    seen: list[Event] = []
    engine.on_event = seen.append
    engine.start()
    try:
        yield engine, seen
    finally:
        for _ in range(1000):
            model.go.release()
        engine.close(LIMIT_S)


def reached(model: Model) -> None:
    assert model.at_step.acquire(timeout=LIMIT_S)


def test_a_job_is_answered_and_told_of():
    model = Model()
    with engine_of(model) as (engine, seen):
        ticket = engine.submit(JOB)
        assert ticket.future.result(LIMIT_S) is ANSWER
        assert engine.load.requests_running == 0
    assert [e.kind for e in seen] == ["queued", "started", "step", "step", "finished"]
    assert [e.values["rows"] for e in seen if e.kind == "step"] == [4, 4]
    assert [s.name for s in ticket.spans] == ["queue", "encode", "denoise"]
    assert all(s.start_ns <= s.end_ns for s in ticket.spans)


def test_the_queue_is_bounded_by_requests():
    model = Model(free=False)
    with engine_of(model, max_requests=2) as (engine, _):
        engine.submit(JOB)
        reached(model)
        assert not engine.load.full
        engine.submit(JOB)
        assert engine.load.full
        with pytest.raises(errors.OverloadedError) as refused:
            engine.submit(JOB)
        assert refused.value.retry_after_s > 0
        load = engine.load
    assert (load.requests_waiting, load.requests_running, load.rows_waiting, load.rows_running) == (1, 1, ROWS, ROWS)


def test_the_queue_is_bounded_by_rows_and_takes_a_large_request_alone():
    large = replace(REQUEST, candidates=("a", "b", "c"))
    model = Model(free=False)
    with engine_of(model, max_rows=ROWS) as (engine, _):
        engine.submit(JOB)
        reached(model)
        engine.submit(Job(large, plain_plan(large)))  # 12 rows where 8 may wait, but nothing waits
        with pytest.raises(errors.OverloadedError):
            engine.submit(JOB)


def test_a_waiting_job_is_cancelled_at_once():
    model = Model(free=False)
    with engine_of(model) as (engine, _):
        engine.submit(JOB)
        reached(model)
        waiting = engine.submit(JOB)
        waiting.cancel()
        with pytest.raises(errors.CancelledError):
            waiting.future.result(0)
        assert engine.load.requests_waiting == 0


def test_a_running_job_is_cancelled_at_the_next_step():
    model = Model(free=False)
    with engine_of(model) as (engine, seen):
        ticket = engine.submit(JOB)
        reached(model)
        ticket.cancel()
        model.go.release()
        with pytest.raises(errors.CancelledError):
            ticket.future.result(LIMIT_S)
        ticket.cancel()  # again: nothing
    assert [e.kind for e in seen] == ["queued", "started", "cancelled"]
    assert model.done == []


def test_a_job_that_waits_too_long_is_told_between_the_steps_of_another():
    model, now = Model(free=False), [100.0]
    with engine_of(model, now, queue_timeout_s=10.0) as (engine, seen):
        first = engine.submit(JOB)
        reached(model)
        late = engine.submit(JOB)
        now[0] = 109.0
        model.go.release()
        reached(model)
        assert not late.future.done()
        now[0] = 111.0
        model.go.release()
        with pytest.raises(errors.QueueTimeoutError, match="10 s"):
            late.future.result(LIMIT_S)
        model.go.release()
        assert first.future.result(LIMIT_S) is ANSWER
    assert [e.values["reason"] for e in seen if e.kind == "timeout"] == ["queue"]


def test_a_job_that_takes_too_long_is_given_up():
    model, now = Model(free=False), [100.0]
    with engine_of(model, now, service_timeout_s=10.0) as (engine, seen):
        ticket = engine.submit(JOB)
        reached(model)
        now[0] = 111.0
        model.go.release()
        with pytest.raises(errors.ServiceTimeoutError, match="10 s"):
            ticket.future.result(LIMIT_S)
    assert [e.values["reason"] for e in seen if e.kind == "timeout"] == ["service"]


def cpu_out_of_memory() -> Exception:
    try:
        torch.empty(10**15)
    except RuntimeError as error:
        return error.with_traceback(None)
    raise AssertionError("a petabyte was to be had")


FAULTS = {
    "any": (ValueError("a woman"), errors.FailedError),
    "memory": (torch.OutOfMemoryError("a woman"), errors.OutOfMemoryError),
    "host memory": (MemoryError("a woman"), errors.OutOfMemoryError),
    "a CPU's tensors": (cpu_out_of_memory(), errors.OutOfMemoryError),
    "the driver's memory": (RuntimeError("CUDA error: out of memory; a woman"), errors.OutOfMemoryError),
    "cuBLAS's memory": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED; a woman"), errors.OutOfMemoryError),
    "not finite": (errors.NotFiniteError("not finite"), errors.NotFiniteError),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_its_own_job_alone_and_quotes_nothing(name: str):
    fault, expected = FAULTS[name]
    model = Model()
    model.fail[1] = fault
    with engine_of(model) as (engine, seen):
        failed, following = engine.submit(JOB), engine.submit(JOB)
        error = failed.future.exception(LIMIT_S)
        assert type(error) is expected
        assert following.future.result(LIMIT_S) is ANSWER
    told = repr((error, error.__cause__, error.__context__, [e.values for e in seen]))
    assert "woman" not in told
    assert ("oom" in [e.kind for e in seen]) == (expected is errors.OutOfMemoryError)


def test_a_dead_device_ends_all_jobs_and_takes_no_more():
    model = Model(free=False)
    model.fail[1] = RuntimeError("CUDA error: an illegal memory access was encountered; a woman")
    with engine_of(model) as (engine, seen):
        tickets = [engine.submit(JOB)]
        reached(model)
        tickets += [engine.submit(JOB) for _ in range(2)]
        model.go.release()
        model.go.release()
        for ticket in tickets:
            with pytest.raises(errors.DeadEngineError) as told:
                ticket.future.result(LIMIT_S)
            assert "woman" not in str(told.value)
        with pytest.raises(errors.DeadEngineError):
            engine.submit(JOB)
    assert [e.kind for e in seen].count("dead") == 1


def test_closing_finishes_what_was_taken_in():
    model = Model()
    with engine_of(model) as (engine, _):
        tickets = [engine.submit(JOB) for _ in range(4)]
        engine.close(LIMIT_S)
        assert [t.future.result(0) for t in tickets] == [ANSWER] * 4
        with pytest.raises(errors.DrainingError):
            engine.submit(JOB)


def test_closing_gives_up_what_does_not_end_in_time():
    model = Model(free=False)
    with engine_of(model) as (engine, _):
        running = engine.submit(JOB)
        reached(model)
        waiting = engine.submit(JOB)
        closing = threading.Thread(target=engine.close, args=(0.0,))
        closing.start()
        with pytest.raises(errors.DrainingError):
            waiting.future.result(LIMIT_S)
        model.go.release()
        with pytest.raises(errors.DrainingError):
            running.future.result(LIMIT_S)
        closing.join(LIMIT_S)


def test_closing_does_not_wait_for_a_step_that_hangs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serial, "_LAST_STEP_S", 0.01)
    model = Model(free=False)
    with engine_of(model) as (engine, seen):
        running = engine.submit(JOB)
        reached(model)
        engine.close(0.0)
        assert isinstance(running.future.exception(0), errors.DrainingError)
        assert engine.load.requests_running == 0
    assert not engine._thread.is_alive()  # it ended in peace
    assert [e.kind for e in seen].count("failed") == 1
    assert "finished" not in [e.kind for e in seen]


def test_an_engine_without_work_keeps_nothing_of_its_last_request():
    with engine_of(Model()) as (engine, _):
        engine._run = lambda job, stop: ANSWER  # the test's model keeps what it did
        job = Job(replace(REQUEST, seed=6), JOB.plan)
        kept = weakref.ref(job)
        engine.submit(job).future.result(LIMIT_S)
        del job
        until(lambda: gc.collect() >= 0 and kept() is None)


def test_closed_before_it_started_it_leaves_nobody_waiting():
    engine = SerialEngine(Model(), clock=lambda: 0.0)
    waiting = engine.submit(JOB)
    engine.close(0.1)
    with pytest.raises(errors.DrainingError):
        waiting.future.result(0)
    with pytest.raises(errors.DrainingError):
        engine.submit(JOB)
