"""The step batcher with a real, small UNet: requests share batches and nothing else, and are given up in time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from serving import LIMIT_S, until
from stepping import (
    LIMITS,
    MIXED,
    PUBLISHED,
    Forward,
    alone,
    answers,
    assert_near,
    engine_of,
    failure,
    job,
    kinds,
    step_rows,
)

from obclip.cloud import errors, stepper
from obclip.cloud.denoising import Denoising
from obclip.cloud.model import CloudModel
from obclip.cloud.policies import (
    DeepCache,
    PublishedReuse,
    SharedUnconditional,
)

# --- the same as alone


def test_requests_of_all_kinds_at_once_get_what_they_get_alone(model: CloudModel):
    with engine_of(model) as (engine, seen), ThreadPoolExecutor(len(MIXED)) as clients:
        engine.start()
        jobs = MIXED + MIXED[:4]
        tickets = list(clients.map(engine.submit, jobs))
        for one, ticket in zip(jobs, tickets, strict=True):
            assert_near(ticket.future.result(LIMIT_S), alone(model, one))
        assert engine.load == replace(engine.load, requests_waiting=0, requests_running=0, rows_running=0)
    assert max(map(int, step_rows(seen))) <= LIMITS.max_batch_rows
    assert sum(map(int, step_rows(seen))) == sum(one.plan.rows for one in jobs)
    assert kinds(seen).count("finished") == len(jobs)
    for ticket in tickets:
        assert [s.name for s in ticket.spans] == ["queue", "encode", "denoise"]


@pytest.mark.parametrize("fixed", [{"row_by_row": True}, {"bucket": lambda rows: 16}], ids=["row by row", "padded"])
def test_what_shares_a_batch_changes_no_bit(model: CloudModel, fixed: dict[str, Any]):
    with engine_of(model, **fixed) as (engine, seen):
        together = answers(engine, MIXED)
    assert max(map(int, step_rows(seen))) > max(one.plan.widest for one in MIXED)
    for one, got in zip(MIXED, together, strict=True):
        with engine_of(model, **fixed) as (engine, _):
            (expected,) = answers(engine, [one])
        assert got.encode() == expected.encode()
        assert_near(got, alone(model, one))


def test_a_request_joins_while_another_runs_and_leaves_before_it(model: CloudModel):
    forward = Forward(model, free=False)
    with engine_of(model, forward) as (engine, seen):
        first = engine.submit(job(2, 6, client="a"))
        engine.start()
        forward.reached()
        forward.go.release()
        forward.reached()  # the first is in its second step
        second = engine.submit(job(1, 2, client="b"))
        forward.release()
        assert_near(second.future.result(LIMIT_S), alone(model, job(1, 2)))
        assert_near(first.future.result(LIMIT_S), alone(model, job(2, 6)))
    assert step_rows(seen) == [4, 4, 6, 6, 4, 4]
    assert [e.values.get("part") for e in seen if e.kind == "step"] == ["full"] * 6


def test_what_is_kept_for_one_request_is_not_kept_for_others(model: CloudModel):
    plain, cached = job(2, 2, (DeepCache(1, (0,)),)), job(2, 3, PUBLISHED[:1])
    kept: list[set[str]] = []

    class Seen(Denoising):
        def take(self, one: Any, start: int, stop: int, output: Any, features: Any) -> None:
            if self.plan is plain.plan:
                kept.append(set(features))
            super().take(one, start, stop, output, features)

    with pytest.MonkeyPatch.context() as patch, engine_of(model) as (engine, _):
        patch.setattr(stepper, "Denoising", Seen)
        answers(engine, [plain, cached])
    assert kept == [{f"up.{model.layered.depth - 1}"}, set()]


# --- giving up


def test_a_request_that_waits_is_cancelled_at_once(model: CloudModel):
    forward = Forward(model, free=False)
    with engine_of(model, forward, max_held_rows=4) as (engine, seen):
        running, waiting = engine.submit(job(2)), engine.submit(job(2))
        engine.start()
        forward.reached()
        assert (engine.load.requests_running, engine.load.requests_waiting) == (1, 1)
        waiting.cancel()
        assert isinstance(failure(waiting), errors.CancelledError)  # the other's step has not moved
        assert (forward.calls, engine.load.requests_waiting) == (1, 0)
        waiting.cancel()
        forward.release()
        assert running.future.result(LIMIT_S)
        running.cancel()
    assert kinds(seen).count("cancelled") == 1


def test_a_request_that_runs_is_cancelled_at_the_next_step(model: CloudModel):
    forward = Forward(model, free=False)
    with engine_of(model, forward) as (engine, seen):
        ticket, other = engine.submit(job(2, 5)), engine.submit(job(1, 5))
        engine.start()
        forward.reached()
        ticket.cancel()
        assert not ticket.future.done()
        forward.release()
        assert isinstance(failure(ticket), errors.CancelledError)
        assert_near(other.future.result(LIMIT_S), alone(model, job(1, 5)))
    assert step_rows(seen) == [6, 2, 2, 2, 2]


def test_waiting_ends_in_time(model: CloudModel):
    forward, now = Forward(model, free=False), [100.0]
    with engine_of(model, forward, now, max_held_rows=4, queue_timeout_s=5.0) as (engine, seen):
        running, waiting = engine.submit(job(2)), engine.submit(job(2))
        engine.start()
        forward.reached()
        now[0] += 6.0
        forward.go.release()
        assert isinstance(failure(waiting), errors.QueueTimeoutError)
        forward.release()
        assert_near(running.future.result(LIMIT_S), alone(model, job(2)))
    assert [e.values["reason"] for e in seen if e.kind == "timeout"] == ["queue"]


def test_running_ends_in_time(model: CloudModel):
    forward, now = Forward(model, free=False), [100.0]
    with engine_of(model, forward, now, service_timeout_s=5.0) as (engine, seen):
        late = engine.submit(job(2, 5))
        engine.start()
        forward.reached()
        now[0] += 6.0
        forward.go.release()
        assert isinstance(failure(late), errors.ServiceTimeoutError)
    assert [e.values["reason"] for e in seen if e.kind == "timeout"] == ["service"]
    assert forward.calls == 1


def test_what_is_more_than_may_wait_is_refused(model: CloudModel):
    forward = Forward(model, free=False)
    with engine_of(model, forward, max_held_rows=4, max_waiting_jobs=1) as (engine, seen):
        tickets = [engine.submit(job(2)), engine.submit(job(2))]
        engine.start()
        forward.reached()
        assert engine.load.full
        with pytest.raises(errors.OverloadedError) as refused:
            engine.submit(job(1))
        assert refused.value.retry_after_s > 0
        forward.release()
        assert all(t.future.result(LIMIT_S) for t in tickets)
        assert not engine.load.full
    assert kinds(seen).count("queued") == 2


def test_what_can_never_fit_is_refused(model: CloudModel):
    with engine_of(model, max_held_rows=6, max_batch_rows=4) as (engine, _):
        for wide in (job(4), job(5, 2, (SharedUnconditional(), PublishedReuse(2)))):
            with pytest.raises(errors.FailedError, match="fewer candidates"):
                engine.submit(wide)


def test_closing_finishes_what_is_in_work(model: CloudModel):
    with engine_of(model, max_held_rows=8) as (engine, _):
        tickets = [engine.submit(job(2, client=client)) for client in "abcd"]
        engine.start()
        engine.close(LIMIT_S)
        assert all(t.future.done() and t.future.result() for t in tickets)
        with pytest.raises(errors.DrainingError):
            engine.submit(job())


def test_closing_without_patience_gives_up_after_the_step(model: CloudModel):
    forward = Forward(model, free=False)
    with engine_of(model, forward, max_held_rows=4) as (engine, _):
        tickets = [engine.submit(job(2)), engine.submit(job(2))]
        engine.start()
        forward.reached()
        closing = threading.Thread(target=engine.close, args=(0.0,))
        closing.start()
        until(lambda: engine._stopping)
        forward.release()
        assert all(isinstance(failure(t), errors.DrainingError) for t in tickets)
        closing.join(LIMIT_S)
    assert forward.calls == 1


def test_closing_does_not_wait_for_a_step_that_hangs(model: CloudModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stepper, "_LAST_STEP_S", 0.01)
    forward = Forward(model, free=False)
    with engine_of(model, forward) as (engine, seen):
        ticket = engine.submit(job(2, 1))
        engine.start()
        forward.reached()
        engine.close(0.0)
        assert isinstance(failure(ticket), errors.DrainingError)
        forward.release()
        engine._thread.join(LIMIT_S)  # it ends in peace
    assert {"dead", "finished"}.isdisjoint(kinds(seen))


def test_closed_before_it_started_it_leaves_nobody_waiting(model: CloudModel):
    with engine_of(model) as (engine, _):
        ticket = engine.submit(job())
        engine.close(0.0)
        assert isinstance(failure(ticket), errors.DrainingError)
