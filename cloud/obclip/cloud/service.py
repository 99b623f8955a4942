"""What the server does, apart from HTTP: checks, admission, running a request, going down.

Nothing here depends on which candidate is meant: the server does not know. What leaves by logs, metrics and spans holds
sizes, durations and outcomes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from obclip.cloud import plans
from obclip.cloud.auth import Client
from obclip.cloud.errors import OverloadedError
from obclip.cloud.limits import Limits, RateLimiter, retry_after
from obclip.cloud.logs import Log
from obclip.cloud.metrics import Metrics
from obclip.cloud.model import CloudModel
from obclip.cloud.plan import Plan, plain_plan
from obclip.cloud.responses import ProblemError, draining, problem_of
from obclip.cloud.serial import QueueLimits, SerialEngine
from obclip.cloud.tracing import Tracer
from obclip.cloud.work import Engine, Event, Job, Span
from obclip.core.errors import InputError, ObclipError, RunError
from obclip.core.pairs import Pair
from obclip.core.schedule import SOLVERS, build_schedule
from obclip.core.wire import PROTOCOL, Capabilities, Request, Response

log = Log("obclip.cloud")
State = Literal["starting", "ready", "draining", "dead"]
Planner = Callable[[Request], Plan]


class ClientGoneError(Exception):
    """The client hung up; nobody is there to be answered."""


class Service:
    """One pair's model behind one engine. engine, planner: by default one request at a time, nothing reused.

    in_flight: requests that were let in. failure: why it could not start.
    """

    def __init__(
        self,
        model: CloudModel,
        pair: Pair,
        limits: Limits,
        version: str,
        *,
        engine: Engine | None = None,
        planner: Planner | None = None,
        tracer: Tracer | None = None,
        limiter: RateLimiter | None = None,
    ) -> None:
        self.model, self.pair, self.limits, self.version = model, pair, limits, version
        self.engine = engine or serial_engine(model, pair, limits)
        self.engine.on_event = self._on_event
        self.planner = planner or plans.Planner(plans.PLAIN, pair.steps, (), limits.max_rows, model.guidance_distilled)
        self.tracer, self.limiter = tracer or Tracer(), limiter or RateLimiter()
        self.metrics = Metrics(lambda: self.engine.load, lambda: self.state)
        self.in_flight = 0
        self.failure: ObclipError | None = None
        self._started = self._draining = self._dead = False

    @property
    def state(self) -> State:
        if self._dead:
            return "dead"
        return "draining" if self._draining else "ready" if self._started else "starting"

    def start(self) -> None:
        """Warm the engine up; ready from then on. If the model cannot run: RunError, and a line in the log."""
        try:
            self.engine.start()
        except Exception as error:
            log.error("warm_up_failed", error)
            said = (
                f"the model failed in its first passes ({type(error).__name__}; where: the log's line warm_up_failed). "
                "If memory ran out, lower --max-rows; if compiling failed, leave --compile out"
            )
            self.failure = error if isinstance(error, ObclipError) else RunError(said)
            raise self.failure from None
        self._started = True

    def drain(self) -> None:
        """Refuse new requests from now on; those that were let in are finished. Safe in a signal handler."""
        self._draining = True

    def close(self, drain_s: float) -> None:
        """Finish what is in work, within `drain_s`, and stop the engine."""
        self.drain()
        self.engine.close(drain_s)
        self.tracer.close()

    @contextmanager
    def flight(self) -> Iterator[None]:
        """Around each request that is let in: going down waits until there is none."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def check_state(self) -> None:
        """ProblemError unless new requests are taken."""
        if self.state == "dead":
            raise ProblemError("engine-dead", "the device failed", retry_after(10.0))
        if self.state == "draining":
            raise draining()
        if self.state == "starting":
            raise draining("the server is starting")

    def admit(self, client: Client) -> None:
        """ProblemError if this request cannot be taken now, whatever it is: decided before its body is read."""
        self.check_state()
        wait_s = self.limiter.take_request(client.name, client.rate)
        if wait_s:
            limit = client.rate.requests_per_minute
            raise ProblemError("rate-limited", f"this key may make {limit} requests a minute", retry_after(wait_s))
        load = self.engine.load
        if load.full:
            self.limiter.give_back_request(client.name, client.rate)
            raise ProblemError("overloaded", f"{load.requests_waiting} requests are waiting", retry_after(load.wait_s))

    def read(self, body: bytes, client: Client) -> Job:
        """ProblemError unless `body` is a request that this server takes; all checks come before any work."""
        try:
            request = Request.decode(body)
        except InputError as error:
            raise ProblemError("invalid-request", str(error)) from None
        if request.pair != self.pair.digest:
            raise ProblemError(
                "pair-mismatch", f"this server runs the pair {self.pair.name} ({self.pair.digest[:12]}…)"
            )
        if len(request.candidates) > self.limits.max_candidates:
            raise ProblemError(
                "too-many-candidates",
                f"{len(request.candidates)} candidates; at most {self.limits.max_candidates} are taken",
            )
        if request.steps > self.limits.max_steps:
            raise ProblemError(
                "invalid-request", f"steps is {request.steps}; at most {self.limits.max_steps} are taken"
            )
        if (request.height, request.width) != (self.pair.height, self.pair.width):
            raise ProblemError("invalid-request", f"the size must be {self.pair.width}x{self.pair.height}")
        try:
            build_schedule(self.model.schedule_config, request.solver, request.steps)
        except InputError as error:
            raise ProblemError("invalid-request", str(error)) from None
        try:
            self.model.text.check([request.negative_prompt, *request.candidates])
        except InputError as error:
            raise ProblemError("prompt-too-long", str(error)) from None
        return Job(request, self.planner(request), client.name)

    async def run(
        self, job: Job, client: Client, gone: Callable[[], Coroutine[Any, Any, None]], note: Callable[[Span], None]
    ) -> Response:
        """Have `job` done; given up at the next step boundary when `gone()` ends first (ClientGoneError).

        note: gets the spans of its time in the engine. ProblemError for whatever keeps it from being done.
        """
        rows, limit = job.plan.rows, client.rate.rows_per_minute
        wait_s = self.limiter.take_rows(client.name, client.rate, rows)
        if wait_s:
            raise ProblemError(
                "rate-limited", f"this takes {rows} rows, and the key may use {limit} a minute", retry_after(wait_s)
            )
        try:
            ticket = self.engine.submit(job)
        except RunError as error:
            self.limiter.give_back_rows(client.name, client.rate, rows)
            if isinstance(error, OverloadedError):  # the queue filled up since `admit`
                self.limiter.give_back_request(client.name, client.rate)
            raise problem_of(error) from None
        leaving: asyncio.Future[Any] = asyncio.create_task(gone())
        work: asyncio.Future[Any] = asyncio.wrap_future(ticket.future)
        work.add_done_callback(_retrieve)
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                ticket.cancel()
                await asyncio.wait({work})
                raise ClientGoneError
            failure = work.exception()
            if isinstance(failure, RunError):
                raise problem_of(failure)
            if failure is not None:
                log.error("engine_error", failure)
                raise ProblemError("internal", "the server failed; nothing is returned")
            response: Response = work.result()
            return response
        finally:
            ticket.cancel()  # nothing to do, unless this task itself was cancelled
            leaving.cancel()
            for span in tuple(ticket.spans):
                note(span)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            protocol=PROTOCOL,
            version=self.version,
            pair_name=self.pair.name,
            pair=self.pair.digest,
            model=self.model.digest,
            solvers=SOLVERS,
            schedule_config=self.model.schedule_config.to_dict(),
            height=self.pair.height,
            width=self.pair.width,
            latent_channels=self.pair.latent_channels,
            latent_downscale=self.pair.latent_downscale,
            max_candidates=self.limits.max_candidates,
            max_steps=self.limits.max_steps,
            max_tokens=self.model.text.max_tokens,
            max_body_bytes=self.limits.max_body_bytes,
        )

    def _on_event(self, event: Event) -> None:
        try:
            self.metrics.on_event(event)
        except Exception as error:  # a slip in counting must not end the engine's thread
            log.error("metrics_error", error)
        if event.kind == "dead":
            self._dead = True
            if self._started:  # else `start` says so, and why
                log.error("engine_dead")
        elif event.kind in ("oom", "nan_rerun", "failed"):
            log.warning(f"engine_{event.kind}", **event.values)
        else:
            log.debug(f"engine_{event.kind}", **event.values)


def serial_engine(model: CloudModel, pair: Pair, limits: Limits) -> SerialEngine:
    """One request after the other on `model`, warmed up by one step, so that the first user does not wait for lazy
    initialisation."""
    from obclip.cloud.engine import execute

    def run(job: Job, stop: Callable[[], bool]) -> Response:
        return execute(job.plan, job.request, model, pair, stop)

    def warm_up() -> None:
        request = Request(
            pair=pair.digest, candidates=("",), negative_prompt="", seed=0, height=pair.height, width=pair.width,
            steps=2, handoff=1, guidance=1.0, solver="ddim",
        )  # fmt: skip
        execute(plain_plan(request, 1, model.guidance_distilled), request, model, pair)

    queue = QueueLimits(limits.max_waiting, limits.max_waiting_rows, limits.queue_timeout_s, limits.service_timeout_s)
    return SerialEngine(run, queue, warm_up)


def _retrieve(work: asyncio.Future[Any]) -> None:
    """An error that nobody is left to hear would be printed by asyncio, message and all."""
    if not work.cancelled():
        work.exception()
