"""An engine of one worker thread that runs requests one after the other.

The simplest thing behind the seam of obclip.cloud.work: a bounded queue, deadlines, cancellation at step boundaries and
draining, around any function that runs a whole plan.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from obclip.cloud import errors
from obclip.cloud.faults import classify, fresh
from obclip.cloud.work import Engine, Event, EventKind, Job, Load, Span, Ticket, ignore
from obclip.core.errors import RunError
from obclip.core.wire import Response

Run = Callable[[Job, Callable[[], bool]], Response]
_SECONDS_PER_ROW = 0.05  # before anything was measured
_LAST_STEP_S = 10.0  # how long a step that is given up may still take


@dataclass(frozen=True)
class QueueLimits:
    """max_requests: taken in, running or waiting. max_rows: waiting; a request of more is taken if nothing waits.

    queue_timeout_s: until a request's turn comes. service_timeout_s: from then on; checked between steps.
    """

    max_requests: int = 8
    max_rows: int = 4096
    queue_timeout_s: float = 60.0
    service_timeout_s: float = 120.0


@dataclass(eq=False)
class _Entry:
    job: Job
    queued_s: float
    queued_ns: int
    future: Future[Response] = field(default_factory=Future)
    spans: list[Span] = field(default_factory=list)
    stop: RunError | None = None  # why it is to be given up at the next step boundary
    started_s: float = 0.0
    ended: bool = False


class SerialEngine:
    """run: executes a job, asking its second argument before it encodes and before every step whether to stop.

    warm_up: called by `start`. clock: monotonic seconds.
    """

    def __init__(
        self,
        run: Run,
        limits: QueueLimits | None = None,
        warm_up: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._warm_up, self._clock = run, warm_up, clock
        self._limits = limits or QueueLimits()
        self.on_event: Callable[[Event], None] = ignore
        self._changed = threading.Condition()
        self._waiting: deque[_Entry] = deque()
        self._running: _Entry | None = None
        self._refusal: RunError | None = None  # why nothing more is taken in
        self._seconds_per_row = _SECONDS_PER_ROW
        self._thread = threading.Thread(target=self._work, name="obclip-engine", daemon=True)

    @property
    def load(self) -> Load:
        with self._changed:
            running = self._running
            rows = sum(e.job.plan.rows for e in self._waiting)
            requests = len(self._waiting) + (running is not None)
            ahead = rows + (running.job.plan.rows if running else 0)
            return Load(
                requests_waiting=len(self._waiting),
                requests_running=int(running is not None),
                rows_waiting=rows,
                rows_running=running.job.plan.rows if running else 0,
                row_capacity=self._limits.max_rows,
                full=requests >= self._limits.max_requests or rows >= self._limits.max_rows,
                wait_s=max(self._seconds_per_row * ahead / max(requests, 1), 0.1),
            )

    def start(self) -> None:
        self._warm_up()
        self._thread.start()

    def submit(self, job: Job) -> Ticket:
        with self._changed:
            if self._refusal is not None:
                raise fresh(self._refusal)
            load = self.load
            rows = load.rows_waiting + job.plan.rows
            if load.full or (load.requests_waiting and rows > self._limits.max_rows):
                raise errors.OverloadedError(
                    f"{load.requests_waiting} requests of {load.rows_waiting} rows are waiting", load.wait_s
                )
            entry = _Entry(job, self._clock(), time.time_ns())
            entry.future.set_running_or_notify_cancel()  # from here on it ends by this engine's hand alone
            self._waiting.append(entry)
            self._changed.notify_all()
        self._tell("queued", rows=job.plan.rows)
        return Ticket(entry.future, lambda: self._cancel(entry), entry.spans)

    def close(self, drain_s: float) -> None:
        gone = errors.DrainingError("the server is going down")
        with self._changed:
            self._refusal = self._refusal or gone
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(drain_s)
        with self._changed:
            left, running = list(self._waiting), self._running
            self._waiting.clear()
            if running is not None:
                running.stop = running.stop or gone
        for entry in left:
            self._settle(entry, gone)
        if self._thread.is_alive():
            self._thread.join(_LAST_STEP_S)
        if running is not None:
            self._settle(running, gone)  # its step hangs, or it has ended by now

    def _cancel(self, entry: _Entry) -> None:
        error = errors.CancelledError("the request was cancelled")
        with self._changed:
            waiting = entry in self._waiting
            if waiting:
                self._waiting.remove(entry)
            else:
                entry.stop = entry.stop or error
        if waiting:
            self._settle(entry, error)

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            try:
                self._serve(entry)
            finally:
                with self._changed:
                    self._running = None
                del entry  # its prompts would stay here until the next one comes

    def _next(self) -> _Entry | None:
        """The request whose turn it is; None once the engine is closed or dead and nothing waits."""
        while True:
            self._expire()
            with self._changed:
                if self._waiting:
                    self._running = self._waiting.popleft()
                    return self._running
                if self._refusal is not None:
                    return None
                self._changed.wait()

    def _expire(self) -> None:
        """End what has waited for too long. Called between steps as well, so that nobody waits for a whole request."""
        with self._changed:
            before = self._clock() - self._limits.queue_timeout_s
            late = [e for e in self._waiting if e.queued_s < before]
            for entry in late:
                self._waiting.remove(entry)
        for entry in late:
            self._settle(entry, errors.QueueTimeoutError(f"no turn within {self._limits.queue_timeout_s:g} s"))

    def _serve(self, entry: _Entry) -> None:
        entry.started_s = self._clock()
        self._tell("started", rows=entry.job.plan.rows, wait_s=entry.started_s - entry.queued_s)
        steps = _Steps(self, entry)
        try:
            response = self._run(entry.job, steps.ask)
            steps.end()
        except Exception as error:
            self._settle(entry, entry.stop or classify(error))
            return
        seconds = self._clock() - entry.started_s
        per_row = seconds / max(entry.job.plan.rows, 1)
        self._seconds_per_row += 0.3 * (per_row - self._seconds_per_row)
        if self._end(entry):
            self._tell("finished", rows=entry.job.plan.rows, seconds=seconds)
            entry.future.set_result(response)

    def _settle(self, entry: _Entry, error: RunError) -> None:
        """End a request with an error, unless it has ended. A dead engine ends all of them."""
        if not self._end(entry):
            return
        if isinstance(error, errors.CancelledError):
            self._tell("cancelled")
        elif isinstance(error, (errors.QueueTimeoutError, errors.ServiceTimeoutError)):
            self._tell("timeout", reason="queue" if isinstance(error, errors.QueueTimeoutError) else "service")
        else:
            if isinstance(error, errors.OutOfMemoryError):
                self._tell("oom")
            self._tell("failed", reason=type(error).__name__)
        others: list[_Entry] = []
        if isinstance(error, errors.DeadEngineError):
            with self._changed:
                self._refusal = error
                others = list(self._waiting)
                self._waiting.clear()
        for one in (entry, *others):
            one.future.set_exception(fresh(error))
        if isinstance(error, errors.DeadEngineError):
            self._tell("dead")

    def _end(self, entry: _Entry) -> bool:
        """Free a request's place, before anybody hears that it is done. Whether the caller is to end its future: the
        first to ask is, and no other."""
        with self._changed:
            if self._running is entry:
                self._running = None
            first, entry.ended = not entry.ended, True
        return first

    def _tell(self, kind: EventKind, **values: float | str) -> None:
        self.on_event(Event(kind, values))


class _Steps:
    """What lies between the questions that a run asks: encoding, then one step after the other."""

    def __init__(self, engine: SerialEngine, entry: _Entry) -> None:
        self.engine, self.entry = engine, entry
        self.asked, self.last_s, self.last_ns = 0, 0.0, time.time_ns()
        entry.spans.append(Span("queue", entry.queued_ns, self.last_ns))

    def ask(self) -> bool:
        """Whether the run must stop here."""
        engine, entry = self.engine, self.entry
        self._mark()
        self.asked += 1
        engine._expire()
        limit = engine._limits.service_timeout_s
        if engine._clock() - entry.started_s > limit:
            entry.stop = entry.stop or errors.ServiceTimeoutError(f"not done within {limit:g} s")
        return entry.stop is not None

    def end(self) -> None:
        self._mark()
        self.entry.spans.append(Span("denoise", self.last_ns, time.time_ns()))

    def _mark(self) -> None:
        now = self.engine._clock()
        if self.asked == 1:
            start, self.last_ns = self.last_ns, time.time_ns()
            self.entry.spans.append(Span("encode", start, self.last_ns))
        elif 1 < self.asked <= len(self.entry.job.plan.steps) + 1:
            passes = self.entry.job.plan.steps[self.asked - 2].passes
            parts = {str(p.part) for p in passes}
            rows = sum(len(p.rows) for p in passes)
            part = parts.pop() if len(parts) == 1 else "mixed"
            self.engine._tell("step", rows=rows, part=part, seconds=now - self.last_s)
        self.last_s = now


_: type[Engine] = SerialEngine
