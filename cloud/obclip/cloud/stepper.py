"""The engine that batches by step: one thread that runs whatever rows are due, of whichever requests they are.

The scheduler (no tensors) says what runs next; the batcher runs it; a request (obclip.cloud.denoising) holds its own
state. Requests join and leave at any step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from obclip.cloud import errors
from obclip.cloud.batch import Batcher, Slice, float32_copy, run_float32
from obclip.cloud.denoising import Denoising
from obclip.cloud.faults import classify, fresh
from obclip.cloud.model import CloudModel
from obclip.cloud.plan import Pass, Step
from obclip.cloud.scheduler import Batch, Done, Full, Scheduler, SchedulerJob, SchedulerLimits, Work
from obclip.cloud.unet import LayeredUNet
from obclip.cloud.work import Engine, Event, EventKind, Job, Load, Span, Ticket, ignore
from obclip.core.errors import RunError
from obclip.core.pairs import Pair
from obclip.core.wire import Response

_LAST_STEP_S = 10.0  # how long a batch that is under way may still take when the engine is given up
_OUTCOMES: dict[str, Callable[[], RunError]] = {
    "cancelled": lambda: errors.CancelledError("the request was cancelled"),
    "queue_timeout": lambda: errors.QueueTimeoutError("its turn did not come in time"),
    "service_timeout": lambda: errors.ServiceTimeoutError("it was not done in time"),
    "too_wide": lambda: errors.OutOfMemoryError("it no longer fits into a batch"),
}


@dataclass(eq=False)
class _Live:
    """A request in the engine. units: its passes in order, with the step of each."""

    job: Job
    units: list[tuple[Step, Pass]]
    queued_s: float
    queued_ns: int
    future: Future[Response] = field(default_factory=Future)
    spans: list[Span] = field(default_factory=list)
    state: Denoising | None = None
    started_s: float = 0.0
    denoise_ns: int = 0


class StepEngine:
    """batcher: runs batches. warm_up: called by `start`. clock: monotonic seconds, for deadlines."""

    def __init__(
        self,
        model: CloudModel,
        pair: Pair,
        limits: SchedulerLimits,
        batcher: Batcher | None = None,
        warm_up: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.pair, self.limits = model, pair, limits
        self.on_event: Callable[[Event], None] = ignore
        self._batcher = batcher or Batcher(model.layered)
        self._scheduler, self._warm_up, self._clock = Scheduler(limits), warm_up, clock
        self._rows_cap = limits.max_batch_rows
        self._live: dict[int, _Live] = {}
        self._next_id = 0
        self._refusal: RunError | None = None  # why nothing more is taken in
        self._stopping = False
        self._wide: LayeredUNet | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="obclip-engine", daemon=True)

    @property
    def load(self) -> Load:
        with self._changed:
            load = self._scheduler.load
        return Load(
            requests_waiting=load.waiting_jobs,
            requests_running=load.admitted_jobs,
            rows_waiting=load.waiting_rows,
            rows_running=load.held_rows,
            row_capacity=self.limits.max_waiting_rows,
            full=load.full,
            wait_s=load.wait_s,
        )

    def start(self) -> None:
        self._warm_up()
        self._thread.start()

    def submit(self, job: Job) -> Ticket:
        """As Engine.submit; FailedError for a request that can never fit."""
        units = [(step, one) for step in job.plan.steps for one in step.passes]
        works = tuple(
            Work(one.part, len(one.rows), whole=bool(one.pivots), boundary=one is step.passes[-1])
            for step, one in units
        )
        with self._changed:
            if self._refusal is not None:
                raise fresh(self._refusal)
            number, self._next_id = self._next_id, self._next_id + 1
            live = _Live(job, units, self._clock(), time.time_ns())
            try:
                self._scheduler.add(SchedulerJob(number, job.client, works, job.plan.widest, live.queued_s))
            except Full as full:
                raise errors.OverloadedError(str(full), full.retry_after_s) from None
            except ValueError as error:
                raise errors.FailedError(str(error)) from None
            live.future.set_running_or_notify_cancel()  # from here on it ends by this engine's hand alone
            self._live[number] = live
            self._changed.notify_all()
        self._tell("queued", rows=job.plan.rows)
        return Ticket(live.future, lambda: self._cancel(number), live.spans)

    def close(self, drain_s: float) -> None:
        gone = errors.DrainingError("the server is going down")
        with self._changed:
            self._refusal = self._refusal or gone
            self._changed.notify_all()
        if not self._thread.is_alive():
            return
        self._thread.join(drain_s)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(_LAST_STEP_S)
        self._end(tuple(self._live), gone)

    def _cancel(self, number: int) -> None:
        with self._changed:
            self._scheduler.cancel(number)
            self._changed.notify_all()

    def _loop(self) -> None:
        while (found := self._next()) is not None:
            batch, done = found
            self._report(done)
            if batch is not None:
                self._serve(batch)

    def _next(self) -> tuple[Batch | None, tuple[Done, ...]] | None:
        """What to run, and what ended without running; None once the engine is closed and nothing is left."""
        with self._changed:
            while not self._stopping:
                batch = self._scheduler.schedule(self._clock())
                done = self._scheduler.take_ended()
                if batch is not None or done:
                    return batch, done
                if self._refusal is not None and not self._live:
                    return None
                self._changed.wait()
        return None

    @torch.inference_mode()
    def _serve(self, batch: Batch) -> None:
        started = self._clock()
        slices = self._slices(batch)
        self._run(slices)
        seconds = self._clock() - started
        if slices:
            part = str(next(iter(slices.values())).one.part)
            self._tell("step", rows=sum(s.rows for s in slices.values()), part=part, seconds=seconds)
        with self._changed:
            done = self._scheduler.postprocess(batch, self._clock(), seconds)
        self._report(done)

    def _slices(self, batch: Batch) -> dict[int, Slice]:
        """Encodes those that begin; a request that cannot even be encoded is left out and fails."""
        slices = {}
        for entry in batch.entries:
            live = self._live[entry.job_id]
            try:
                state = live.state or self._begin(live)
            except Exception as error:
                self._fail([entry.job_id], error)
                continue
            step, one = live.units[entry.unit_index]
            slices[entry.job_id] = Slice(state, step, one, entry.start, entry.stop)
        return slices

    def _begin(self, live: _Live) -> Denoising:
        live.started_s, began = self._clock(), time.time_ns()
        live.spans.append(Span("queue", live.queued_ns, began))
        self._tell("started", rows=live.job.plan.rows, wait_s=live.started_s - live.queued_s)
        live.state = Denoising(self.model, self.pair, live.job.request, live.job.plan)
        live.denoise_ns = time.time_ns()
        live.spans.append(Span("encode", began, live.denoise_ns))
        return live.state

    def _run(self, slices: dict[int, Slice]) -> None:
        """Run a batch and take the solver's step where one is done. Whoever fails is dropped from `slices`."""
        if not slices:
            return
        try:
            bad = self._batcher.run(list(slices.values()))
        except Exception as error:
            kind = classify(error)
            if isinstance(kind, errors.OutOfMemoryError):
                self._halve(sum(s.rows for s in slices.values()))
            alone = len(slices) == 1 or isinstance(kind, (errors.OutOfMemoryError, errors.DeadEngineError))
            if alone:
                self._fail(list(slices), kind)
                slices.clear()
            else:  # one of them may have broken it for all: each by itself
                parts = {number: {number: one} for number, one in slices.items()}
                slices.clear()
                for part in parts.values():
                    if self._refusal is None or not isinstance(self._refusal, errors.DeadEngineError):
                        self._run(part)
                    slices |= part
            return
        for number in self._still_bad(slices, bad):
            self._fail([number], errors.NotFiniteError("the model made numbers that are not finite"))
            del slices[number]
        for number, one in list(slices.items()):
            if one.closes_step:
                try:
                    one.state.advance(one.step)
                except Exception as error:
                    self._fail([number], error)
                    del slices[number]

    def _still_bad(self, slices: dict[int, Slice], bad: Sequence[Slice]) -> list[int]:
        """Rows that were not finite run once more, in float32; the requests for which that does not help."""
        if not bad:
            return []
        self._tell("nan_rerun", rows=sum(one.rows for one in bad))
        try:
            self._wide = self._wide or (
                self.model.layered if self.model.dtype == torch.float32 else float32_copy(self.model.layered)
            )
            left = run_float32(bad, self._wide)
        except Exception:
            left = list(bad)
        states = {id(one.state) for one in left}
        return [number for number, one in slices.items() if id(one.state) in states]

    def _halve(self, rows: int) -> None:
        """After out-of-memory: half as many rows in a batch from now on."""
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        with self._changed:
            self._rows_cap = max(1, min(self._rows_cap, rows) // 2)
            done = self._scheduler.shrink(self._rows_cap)
        self._tell("oom", rows=self._rows_cap)
        self._report(done)

    def _report(self, done: Sequence[Done]) -> None:
        for one in done:
            if one.outcome == "finished":
                self._finish(one.job_id)
            else:
                self._settle(one.job_id, _OUTCOMES[one.outcome]())

    def _finish(self, number: int) -> None:
        live = self._live[number]
        assert live.state is not None
        try:
            response = live.state.response()
        except Exception as error:
            self._settle(number, classify(error))
            return
        with self._changed:
            del self._live[number]
        live.spans.append(Span("denoise", live.denoise_ns, time.time_ns()))
        self._tell("finished", rows=live.job.plan.rows, seconds=self._clock() - live.started_s)
        live.future.set_result(response)

    def _fail(self, numbers: Sequence[int], error: Exception) -> None:
        """Drop requests that broke. A dead device ends all of them, and everything."""
        kind = classify(error)
        dead = isinstance(kind, errors.DeadEngineError)
        with self._changed:
            if dead:
                self._refusal, numbers = kind, tuple(self._live)
            self._scheduler.fail(numbers)
        self._end(numbers, kind)
        if dead:
            self._tell("dead")

    def _end(self, numbers: Sequence[int], error: RunError) -> None:
        for number in numbers:
            self._settle(number, error)

    def _settle(self, number: int, error: RunError) -> None:
        with self._changed:
            live = self._live.pop(number)
        if isinstance(error, errors.CancelledError):
            self._tell("cancelled")
        elif isinstance(error, (errors.QueueTimeoutError, errors.ServiceTimeoutError)):
            self._tell("timeout", reason="queue" if isinstance(error, errors.QueueTimeoutError) else "service")
        else:
            self._tell("failed", reason=type(error).__name__)
        live.future.set_exception(fresh(error))

    def _tell(self, kind: EventKind, **values: float | str) -> None:
        self.on_event(Event(kind, values))


_: type[Engine] = StepEngine
