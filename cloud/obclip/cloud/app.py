"""The HTTP application: one atomic answer per request, problem documents for everything else.

Nothing here depends on which candidate is meant: the server does not know. Logs and metrics hold no prompt and no
candidate index, only sizes, durations and outcomes.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi import Response as HttpResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from obclip.cloud.engine import CancelledError, execute
from obclip.cloud.model import CloudModel
from obclip.cloud.plan import Plan, plain_plan
from obclip.core.errors import InputError
from obclip.core.pairs import Pair
from obclip.core.problems import MEDIA_TYPE as PROBLEM_TYPE
from obclip.core.problems import Problem
from obclip.core.schedule import SOLVERS, build_schedule
from obclip.core.wire import CAPABILITIES_PATH, DENOISE_PATH, MEDIA_TYPE, PROTOCOL, Capabilities, Request, Response
from obclip.core.wire import MAX_PROMPT_CHARS as PROMPT_CHARS

log = logging.getLogger("obclip.cloud")
DISCONNECT_POLL_S = 0.1


@dataclass(frozen=True)
class Limits:
    """max_rows: rows (candidates x branches) in one UNet pass. max_waiting: requests taken in, running or queued."""

    max_candidates: int = 64
    max_rows: int = 64
    max_steps: int = 100
    max_waiting: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")

    @property
    def max_body_bytes(self) -> int:
        return 4096 + (self.max_candidates + 1) * PROMPT_CHARS * 4


class ProblemError(Exception):
    """Ends a request with a problem document."""

    def __init__(self, slug: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.problem, self.headers = Problem.of(slug, detail), headers or {}


class Metrics:
    """Prometheus counters in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("obclip_requests", "Denoise requests by outcome", ["outcome"], registry=self.registry)
        self.rows = Counter("obclip_unet_rows", "Rows run through the UNet", registry=self.registry)
        self.seconds = Histogram("obclip_denoise_seconds", "Time in the model per request", registry=self.registry)
        self.waiting = Gauge(
            "obclip_requests_waiting", "Requests taken in and not yet answered", registry=self.registry
        )


class Service:
    """One model, one worker thread, a bounded number of requests."""

    def __init__(self, model: CloudModel, pair: Pair, limits: Limits, version: str) -> None:
        self.model, self.pair, self.limits, self.version = model, pair, limits, version
        self.metrics = Metrics()
        self.ready = False
        self.waiting = 0
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="obclip-model")

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

    def check(self, body: bytes) -> tuple[Request, Plan]:
        """ProblemError unless `body` is a request that this server takes; all checks come before any work."""
        try:
            request = Request.decode(body)
            build_schedule(self.model.schedule_config, request.solver, request.steps)
        except InputError as error:
            raise ProblemError("invalid-request", str(error)) from error
        except Exception as error:  # its message could quote a prompt, so it goes no further
            log.error("a request could not be read: %s", type(error).__name__)
            raise ProblemError("internal", "the request could not be read; nothing was done") from None
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
            self.model.text.check([request.negative_prompt, *request.candidates])
        except InputError as error:
            raise ProblemError("prompt-too-long", str(error)) from error
        return request, plain_plan(request, self.limits.max_rows, self.model.guidance_distilled)

    def run(self, request: Request, plan: Plan, cancelled: threading.Event) -> Response:
        started = time.perf_counter()
        response = execute(plan, request, self.model, self.pair, cancelled.is_set)
        self.metrics.seconds.observe(time.perf_counter() - started)
        self.metrics.rows.inc(plan.rows)
        return response

    def warm_up(self) -> None:
        """One step, so that the first user does not wait for lazy initialisation."""
        request = Request(
            pair=self.pair.digest, candidates=("",), negative_prompt="", seed=0, height=self.pair.height,
            width=self.pair.width, steps=2, handoff=1, guidance=1.0, solver="ddim",
        )  # fmt: skip
        execute(plain_plan(request, 1), request, self.model, self.pair)


def create_app(
    model: CloudModel, pair: Pair, limits: Limits | None = None, token: str | None = None, version: str = "0"
) -> FastAPI:
    """The application for one pair. token: if set, every address but /healthz wants `Authorization: Bearer TOKEN`."""
    service = Service(model, pair, limits or Limits(), version)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.get_running_loop().run_in_executor(service.worker, service.warm_up)
        service.ready = True
        yield
        service.ready = False
        service.worker.shutdown(wait=True)

    app = FastAPI(
        title="ObCLIP cloud", version=version, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.state.service = service
    _add_errors(app)

    @app.middleware("http")
    async def authorise(http: HttpRequest, call_next: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> HttpResponse:
        given = http.headers.get("authorization", "")
        if (
            token
            and http.url.path != "/healthz"
            and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode())
        ):
            problem = Problem.of("unauthorized", "send `Authorization: Bearer TOKEN`")
            return _problem_response(problem, {"WWW-Authenticate": "Bearer"})
        return await call_next(http)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        if not service.ready:
            raise ProblemError("draining", "the server is not ready", {"Retry-After": "1"})
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> HttpResponse:
        return HttpResponse(generate_latest(service.metrics.registry), media_type="text/plain; version=0.0.4")

    @app.get(CAPABILITIES_PATH)
    async def capabilities() -> HttpResponse:
        return HttpResponse(service.capabilities().encode(), media_type="application/json")

    @app.post(DENOISE_PATH)
    async def denoise(http: HttpRequest) -> HttpResponse:
        if not service.ready:
            raise ProblemError("draining", "the server is not ready", {"Retry-After": "1"})
        if not http.headers.get("content-type", "").startswith("application/json"):
            raise ProblemError("unsupported-media-type", "send the request as application/json")
        request, plan = service.check(await _read_body(http, service.limits.max_body_bytes))
        if service.waiting >= service.limits.max_waiting:
            service.metrics.requests.labels("overloaded").inc()
            raise ProblemError("overloaded", f"{service.waiting} requests are in work", {"Retry-After": "2"})
        service.waiting += 1
        service.metrics.waiting.set(service.waiting)
        try:
            response = await _run_until_disconnect(service, request, plan, http)
        finally:
            service.waiting -= 1
            service.metrics.waiting.set(service.waiting)
        service.metrics.requests.labels("ok").inc()
        log.info("denoised %d candidates, %d steps, %d rows", plan.candidates, len(plan.steps), plan.rows)
        return HttpResponse(response.encode(), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})

    return app


async def _run_until_disconnect(service: Service, request: Request, plan: Plan, http: HttpRequest) -> Response:
    cancelled = threading.Event()
    work = asyncio.get_running_loop().run_in_executor(service.worker, service.run, request, plan, cancelled)
    try:
        while not (await asyncio.wait([work], timeout=DISCONNECT_POLL_S))[0]:
            if await http.is_disconnected():
                cancelled.set()
                work.cancel()  # if it has not begun, its place is free at once
        return work.result()
    except (CancelledError, asyncio.CancelledError):
        if not cancelled.is_set():  # the server is going down
            raise
        service.metrics.requests.labels("cancelled").inc()
        raise ProblemError("internal", "the client went away") from None
    except Exception as error:
        service.metrics.requests.labels("failed").inc()
        log.error("denoising failed: %s", type(error).__name__)  # the message could quote a prompt
        raise ProblemError("internal", "the model failed on this request; nothing of it is returned") from error
    finally:
        cancelled.set()


async def _read_body(http: HttpRequest, limit: int) -> bytes:
    chunks, size = [], 0
    async for chunk in http.stream():
        size += len(chunk)
        if size > limit:
            raise ProblemError("body-too-large", f"the body is over {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _add_errors(app: FastAPI) -> None:
    slugs = {404: "not-found", 405: "method-not-allowed"}

    @app.exception_handler(ProblemError)
    async def on_problem(_: HttpRequest, error: ProblemError) -> HttpResponse:
        return _problem_response(error.problem, error.headers)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def on_http_error(http: HttpRequest, error: HTTPException) -> HttpResponse:
        detail = f"{http.method} {http.url.path}"[:200]
        return _problem_response(Problem.of(slugs[error.status_code], detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def on_exception(_: HttpRequest, error: Exception) -> HttpResponse:
        log.error("unexpected %s", type(error).__name__)
        return _problem_response(Problem.of("internal", "an unexpected error; the server goes on"), {})


def _problem_response(problem: Problem, headers: dict[str, str]) -> HttpResponse:
    return HttpResponse(problem.encode(), status_code=problem.status, media_type=PROBLEM_TYPE, headers=headers)
