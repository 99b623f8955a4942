"""Fairness between clients, by example and by the bounds that obclip.cloud.turns proves."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from scheduled import FULL, SHALLOW, drained, job, limits, run, shares, works

from obclip.cloud.scheduler import Scheduler, SchedulerJob, Work


def test_ten_requests_do_not_push_back_one():
    scheduler = Scheduler(limits(max_batch_rows=4))
    for i in range(10):
        scheduler.add(job(i, "many", units=5, rows=4))
    scheduler.add(job(10, "one", units=5, rows=4))
    turns = [next(iter(shares(b))) == 10 for b, _ in drained(scheduler)]
    assert turns[:10] == [False, True] * 5


def test_who_comes_back_after_idling_has_saved_up_nothing():
    scheduler = Scheduler(limits(max_batch_rows=4))
    scheduler.add(job(0, "idler", units=1))
    scheduler.add(job(1, "worker", units=60))
    for _ in range(41):
        run(scheduler)
    scheduler.add(job(2, "idler", units=10))
    turns = [next(iter(shares(run(scheduler)[0]))) for _ in range(20)]
    assert Counter(turns) == {1: 10, 2: 10}
    assert max(Counter(turns[:4]).values()) == 2


def test_who_ran_alone_owes_nothing_for_it():
    scheduler = Scheduler(limits(max_batch_rows=4))
    scheduler.add(job(0, "early", units=1))
    list(drained(scheduler))
    scheduler.add(job(1, "alone", units=50))
    list(drained(scheduler))
    scheduler.add(job(2, "early", units=10))
    scheduler.add(job(3, "alone", units=10))
    turns = [next(iter(shares(run(scheduler)[0]))) for _ in range(10)]
    assert 4 <= Counter(turns)[3] <= 6


def test_leaving_and_coming_back_gains_nothing():
    """Three clients that send a unit at a time, each a batch after the last was done, do not outrun one that stays."""
    scheduler = Scheduler(limits(max_batch_rows=4))
    owners = ["steady", "x", "y", "z"]
    for i, client in enumerate(owners):
        scheduler.add(job(i, client, units=1 if i else 30))
    turns: list[str] = []
    for _ in range(60):
        turns.append(owners[next(iter(shares(run(scheduler)[0])))])
        if turns[-2:-1] and turns[-2] != "steady":
            owners.append(turns[-2])
            scheduler.add(job(len(owners) - 1, turns[-2], units=1))
    assert turns.count("steady") >= 15


def test_turns_are_counted_in_rows():
    scheduler = Scheduler(limits())
    scheduler.add(job(0, "wide", units=10, rows=8, kind=FULL))
    scheduler.add(job(1, "narrow", units=40, rows=2, kind=SHALLOW))
    turns = [b.kind for b, _ in drained(scheduler)]
    assert turns[:10] == [FULL, *[SHALLOW] * 4] * 2


def test_room_that_only_one_can_use_is_not_held_against_it():
    """A client whose single row leaves most of each batch empty saves up at most two batches against who filled it."""
    scheduler = Scheduler(limits())
    scheduler.add(job(0, "narrow", units=100, rows=1))
    for i in (1, 2):
        scheduler.add(job(i, "wide", units=100, rows=8))
    for _ in range(99):
        run(scheduler)
    scheduler.add(job(3, "narrow", units=20, rows=8, kind=SHALLOW))
    turns = [b.kind for _, (b, _) in zip(range(10), drained(scheduler), strict=False)]
    assert turns.count(FULL) >= 4


def test_a_job_of_a_rare_kind_is_not_kept_waiting_by_its_own_siblings():
    """Their rows ride along with another client's, so that theirs is never owed a turn; but not for ever."""
    scheduler = Scheduler(limits())
    scheduler.add(job(0, "other", units=200, rows=1))
    for i in (1, 2, 3):
        scheduler.add(job(i, "same", units=200, rows=4))
    run(scheduler)
    scheduler.add(job(4, "same", units=1, rows=1, kind=SHALLOW))
    waited = next(i for i, (b, _) in enumerate(drained(scheduler)) if b.kind == SHALLOW)
    assert waited <= 4 * (1 + 17)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_two_clients_with_equal_work_stay_level(cap: int, rows: int, jobs: int, units: int, whole: bool):
    """At any time they differ by at most a batch and a unit."""
    scheduler = Scheduler(limits(max_batch_rows=cap))
    whole = whole and rows <= cap
    for i in range(2 * jobs):  # all of one client's come first
        scheduler.add(job(i, "ab"[i >= jobs], units=units, rows=rows, whole=whole))
    lead = 0
    for batch, _ in drained(scheduler):
        lead += sum(n if i < jobs else -n for i, n in shares(batch).items())
        assert abs(lead) <= cap + min(cap, rows)


@given(st.integers(1, 12), *[st.lists(st.lists(st.integers(1, 12), min_size=1), min_size=1, max_size=4)] * 2)
def test_two_clients_that_cannot_share_batches_stay_level(cap: int, full: list, shallow: list):
    """Whatever the sizes, while both have work they differ by at most a batch and a unit."""
    scheduler = Scheduler(limits(max_batch_rows=cap))
    left = {FULL: sum(map(sum, full)), SHALLOW: sum(map(sum, shallow))}
    for i, (kind, rows) in enumerate([*((FULL, r) for r in full), *((SHALLOW, r) for r in shallow)]):
        scheduler.add(SchedulerJob(i, kind, tuple(Work(kind, n) for n in rows), 1, 0.0))
    lead = 0
    for batch, _ in drained(scheduler):
        lead += batch.rows if batch.kind == FULL else -batch.rows
        left[str(batch.kind)] -= batch.rows
        if not all(left.values()):
            return
        assert abs(lead) <= cap + min(cap, max(n for rows in [*full, *shallow] for n in rows))


@given(st.integers(1, 8), st.lists(works(), min_size=1, max_size=4), st.lists(works(), min_size=1, max_size=10))
def test_nobody_is_pushed_back_by_more_than_a_batch_and_a_unit(cap: int, few: list, many: list):
    """Whatever two clients ask for: while both have work, the rows that one was given ahead of rows of the other, which
    would have fitted in their place, exceed those that the other was given by at most a batch and a unit."""
    scheduler = Scheduler(limits(max_batch_rows=cap))
    units = {i: tuple(Work(w.kind, w.rows, w.whole and w.rows <= cap) for w in u) for i, u in enumerate([*few, *many])}
    clients = {"few": range(len(few)), "many": range(len(few), len(units))}
    at = dict.fromkeys(units, (0, 0))
    for client, ids in clients.items():
        for i in ids:
            scheduler.add(SchedulerJob(i, client, units[i], 1, 0.0))
    served: Counter[str] = Counter()
    ahead: Counter[str] = Counter()
    most = min(cap, max(w.rows for u in units.values() for w in u))
    for batch, _ in drained(scheduler):
        got = {client: sum(n for i, n in shares(batch).items() if i in ids) for client, ids in clients.items()}
        ready = {i: units[i][unit] for i, (unit, _) in at.items() if unit < len(units[i])}
        for client, ids in clients.items():
            other = "few" if client == "many" else "many"
            left_out = [
                i for i, w in ready.items()
                if i in ids and not w.whole and w.kind == batch.kind and shares(batch).get(i, 0) < w.rows - at[i][1]
            ]  # fmt: skip
            served[client] += got[client]
            ahead[other] += got[other] if left_out else 0
        for e in batch.entries:
            at[e.job_id] = (
                (e.unit_index, e.stop) if e.stop < units[e.job_id][e.unit_index].rows else (e.unit_index + 1, 0)
            )
        if any(all(at[i][0] == len(units[i]) for i in ids) for ids in clients.values()):
            return
        assert ahead["many"] <= served["few"] + cap + most
        assert ahead["few"] <= served["many"] + cap + most
