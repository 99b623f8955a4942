"""The engine that batches by step: one thread that runs whatever rows are due, of whichever requests they are.

The scheduler (no tensors) says what runs next; the runner runs it; a request (obclip.cloud.denoising) holds its own
state. Requests join and leave at any step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future

import torch

from obclip.cloud import errors
from obclip.cloud.batch import Batcher, Slice
from obclip.cloud.denoising import Denoising
from obclip.cloud.faults import classify, fresh
from obclip.cloud.live import OUTCOMES, Live
from obclip.cloud.logs import Log
from obclip.cloud.model import CloudModel
from obclip.cloud.rowcap import RowCap
from obclip.cloud.runner import Outcome, Runner
from obclip.cloud.scheduler import Batch, Done, Full, Scheduler, SchedulerLimits
from obclip.cloud.work import Engine, Event, EventKind, Job, Load, Span, Ticket, ignore
from obclip.core.errors import RunError
from obclip.core.pairs import Pair

log = Log("obclip.cloud.engine")
_LAST_STEP_S = 10.0  # how long a batch that is under way may still take when the engine is given up


class StepEngine:
    """batcher: runs batches. warm_up: what the engine's thread does first (CUDA graphs belong to the thread that made
    them). clock: monotonic seconds, for deadlines. cap: of a batch's rows; given where the batcher pads to it."""

    def __init__(
        self,
        model: CloudModel,
        pair: Pair,
        limits: SchedulerLimits,
        batcher: Batcher | None = None,
        warm_up: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        cap: RowCap | None = None,
    ) -> None:
        self.model, self.pair, self.limits = model, pair, limits
        self.on_event: Callable[[Event], None] = ignore
        self._runner = Runner(model, batcher or Batcher(model.layered))
        self._scheduler, self._warm_up, self._clock = Scheduler(limits), warm_up, clock
        self._cap = cap or RowCap(limits.max_batch_rows)
        self._live: dict[int, Live] = {}
        self._next_id = 0
        self._refusal: RunError | None = None  # why nothing more is taken in
        self._stopping = False
        self._changed = threading.Condition()
        self._warm: Future[None] = Future()
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
        """As Engine.start. Raises what warming up raised; the engine is dead then."""
        self._thread.start()
        self._warm.result()

    def submit(self, job: Job) -> Ticket:
        """As Engine.submit; FailedError for a request that can never fit."""
        live = Live(job, self._clock())
        with self._changed:
            if self._refusal is not None:
                raise fresh(self._refusal)
            number, self._next_id = self._next_id, self._next_id + 1
            try:
                self._scheduler.add(live.for_scheduler(number))
            except Full as full:
                raise errors.OverloadedError(str(full), full.retry_after_s) from None
            except ValueError as error:
                self._grow()  # it may be all that is asked for, and no batch ever run that went well
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
        if self._thread.is_alive():
            self._thread.join(drain_s)
            self._stopping = True  # no need to wake it: once closed, it waits only for others to end requests
            self._thread.join(_LAST_STEP_S)
        with self._changed:
            left = dict.fromkeys(self._live, gone)
        self._fail(left)

    def _cancel(self, number: int) -> None:
        with self._changed:
            self._scheduler.cancel(number)
            done = self._scheduler.take_ended()  # now, not when the batch that runs is over
            self._changed.notify_all()
        self._report(done)

    def _loop(self) -> None:
        try:
            self._warm_up()
        except BaseException as error:
            self._die(errors.DeadEngineError("the engine could not start"))
            self._warm.set_exception(error)
            return
        self._warm.set_result(None)
        try:
            while (found := self._next()) is not None:
                self._report(found[1])
                if found[0] is not None:
                    self._serve(found[0])
        except Exception as error:  # a fault of this engine: nobody may be left waiting for what will never come
            log.error("engine_error", error)
            self._die(errors.DeadEngineError("the engine failed; the server ends"))

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
        slices, outcome = self._slices(batch)
        if slices and outcome.dead is None:
            ran = self._runner.run(slices)
            outcome = Outcome(outcome.failed | ran.failed, ran.rerun_rows, ran.overflow)
        seconds = self._clock() - started
        self._after(outcome)
        rows = sum(one.rows for number, one in slices.items() if number not in outcome.failed)
        if rows and outcome.dead is None:
            self._tell("step", rows=rows, part=str(batch.kind), seconds=seconds)
        with self._changed:
            done = self._scheduler.postprocess(batch, self._clock(), seconds)
        self._report(done)

    def _slices(self, batch: Batch) -> tuple[dict[int, Slice], Outcome]:
        """Encodes those that begin; a request that cannot even be encoded is left out and fails."""
        slices, outcome = {}, Outcome()
        for entry in batch.entries:
            live = self._live.get(entry.job_id)
            if live is None:  # `close` gave it up
                continue
            try:
                state = live.state or self._begin(live)
                slices[entry.job_id] = Slice(state, *live.units[entry.unit_index], entry.start, entry.stop)
            except Exception as error:
                outcome.failed[entry.job_id] = classify(error)
        return slices, outcome

    def _begin(self, live: Live) -> Denoising:
        live.started_s, began = self._clock(), time.time_ns()
        live.spans.append(Span("queue", live.queued_ns, began))
        self._tell("started", rows=live.job.plan.rows, wait_s=live.started_s - live.queued_s)
        live.state = Denoising(self.model, self.pair, live.job.request, live.job.plan)
        live.denoise_ns = time.time_ns()
        live.spans.append(Span("encode", began, live.denoise_ns))
        return live.state

    def _after(self, outcome: Outcome) -> None:
        """What follows from a batch's faults, before the scheduler hears that it is over."""
        if outcome.rerun_rows:
            self._tell("nan_rerun", rows=outcome.rerun_rows)
        if outcome.dead is not None:
            return self._die(outcome.dead)
        self._fail(outcome.failed)
        if outcome.overflow is not None:
            self._halve(outcome.overflow)
        elif not outcome.failed:
            self._grow()

    def _halve(self, rows: int) -> None:
        """After out-of-memory in a batch of `rows`: half as many in a batch, until it has gone well for long."""
        with self._changed:
            padded = self._runner.batcher.size(1)
            done = self._scheduler.shrink(self._cap.overflow(rows))
        self._tell("oom", rows=self._cap.rows)
        self._compare(padded)
        self._report(done)

    def _grow(self) -> None:
        with self._changed:
            padded = self._runner.batcher.size(1)
            if (cap := self._cap.good()) is not None:
                self._scheduler.grow(cap)
        self._compare(padded)

    def _compare(self, padded: int) -> None:
        """Tell if batches were padded to `padded` rows, and to another number now."""
        if (rows := self._runner.batcher.size(1)) != padded:
            log.warning("padding", rows=rows, note="answers may differ in their last bits from those before")

    def _die(self, error: RunError) -> None:
        """End all requests, and everything."""
        with self._changed:
            self._refusal = error
            failed = dict.fromkeys(self._live, error)
        self._fail(failed)
        self._tell("dead")

    def _report(self, done: Sequence[Done]) -> None:
        for one in done:
            if one.outcome == "finished":
                self._finish(one.job_id)
            else:
                self._end({one.job_id: OUTCOMES[one.outcome]()})

    def _finish(self, number: int) -> None:
        live = self._live.get(number)
        if live is None or live.state is None:  # `close` gave it up
            return
        try:
            response = live.state.response()
        except Exception as error:
            self._after(Outcome({number: classify(error)}))
            return
        if self._drop([number]):
            live.spans.append(Span("denoise", live.denoise_ns, time.time_ns()))
            self._tell("finished", rows=live.job.plan.rows, seconds=self._clock() - live.started_s)
            live.future.set_result(response)

    def _drop(self, numbers: Iterable[int]) -> list[Live]:
        """Take requests off the list: whoever does ends their futures."""
        with self._changed:
            self._changed.notify_all()  # once closed, the engine's thread waits for the last of them
            return [self._live.pop(number) for number in numbers if number in self._live]

    def _fail(self, failed: Mapping[int, RunError]) -> None:
        """End requests of which the scheduler does not know that they are over."""
        with self._changed:
            self._scheduler.fail(failed)
        self._end(failed)

    def _end(self, failed: Mapping[int, RunError]) -> None:
        for number, error in failed.items():
            for live in self._drop([number]):
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
