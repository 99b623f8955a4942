"""The HTTP application: one atomic answer per request, problem documents for everything else.

A request for latents is checked from the outside in: its key, its declared size and type, whether the server takes work
at all, the key's rate, the queue; then its body, as a whole, with a deadline; then, last, the rows it needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi import Response as HttpResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from obclip.cloud.auth import Authenticator, Client
from obclip.cloud.front import HEALTH_PATH, METRICS_PATH, OPENAPI_PATH, READY_PATH, Front
from obclip.cloud.limits import Limits, RateLimiter
from obclip.cloud.logs import Log
from obclip.cloud.metrics import MEDIA_TYPE as METRICS_TYPE
from obclip.cloud.model import CloudModel
from obclip.cloud.openapi import document
from obclip.cloud.responses import REFUSALS, ProblemError, respond
from obclip.cloud.service import ClientGoneError, Planner, Service
from obclip.cloud.tracing import Tracer
from obclip.cloud.work import Engine, Job, Span
from obclip.core.pairs import Pair
from obclip.core.wire import CAPABILITIES_PATH, DENOISE_PATH, MEDIA_TYPE

log = Log("obclip.cloud")
DRAIN_S = 60.0
_STATUS_SLUGS = {404: "not-found", 405: "method-not-allowed"}


def create_app(
    model: CloudModel,
    pair: Pair,
    limits: Limits | None = None,
    token: str | None = None,
    version: str = "0",
    *,
    keys: Path | None = None,
    engine: Engine | None = None,
    planner: Planner | None = None,
    tracer: Tracer | None = None,
    limiter: RateLimiter | None = None,
    metrics_here: bool = True,
    drain_s: float = DRAIN_S,
) -> FastAPI:
    """The application for one pair.

    token, keys: if either is set, every address but /healthz and /readyz wants `Authorization: Bearer TOKEN`, the token
    or a key of the file. engine, planner: see Service. metrics_here: whether /metrics is served, or from elsewhere.
    drain_s: how long shutting down waits for what is in work. InputError for a keys file that is none.
    """
    auth = Authenticator(token, keys)
    service = Service(
        model, pair, limits or Limits(), version, engine=engine, planner=planner, tracer=tracer, limiter=limiter
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.start)
        log.info("ready", pair=pair.name, plan=getattr(service.planner, "name", "custom"), version=version)
        yield
        await run_in_threadpool(service.close, drain_s)
        log.info("stopped")

    # FastAPI's own telemetry would record exceptions with their messages, which could quote a prompt
    quiet: Any = {"auto_configure": False, "tracing": False, "metrics": False, "logs": False}
    app = FastAPI(
        title="ObCLIP cloud", version=version, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan,
        redirect_slashes=False, telemetry=quiet,
    )  # fmt: skip
    app.state.service = service
    app.add_middleware(Front, auth=auth, metrics=service.metrics)
    _add_errors(app)
    _add_readings(app, service, auth, metrics_here)

    @app.post(DENOISE_PATH)
    async def denoise(http: HttpRequest) -> HttpResponse:
        return await _Exchange(service, http).answer()

    return app


class _Exchange:
    """One request for latents, from its headers to its answer, and the account of it."""

    def __init__(self, service: Service, http: HttpRequest) -> None:
        self.service, self.http = service, http
        self.client: Client = http.state.client
        self.started_ns = time.time_ns()
        self.job: Job | None = None
        self.spans: list[Span] = []

    async def answer(self) -> HttpResponse:
        outcome = "internal"
        try:
            with self.service.flight():
                body = await self._encoded()
            outcome = "ok"
            return HttpResponse(body, media_type=MEDIA_TYPE, headers={"Accept-Ranges": "none"})
        except ProblemError as error:
            outcome = error.problem.slug
            return respond(error)
        except (ClientGoneError, ClientDisconnect):
            outcome = "cancelled"
            return HttpResponse(status_code=500)  # to nobody
        except asyncio.CancelledError:  # how Ray Serve says that the client went away
            outcome = "cancelled"
            raise
        finally:
            self._account(outcome)

    async def _encoded(self) -> bytes:
        service, limits = self.service, self.service.limits
        _check_headers(self.http, limits.max_body_bytes)
        service.admit(self.client)
        body = await _read_body(self.http, limits.max_body_bytes, limits.body_timeout_s)
        self.job = await run_in_threadpool(service.read, body, self.client)
        service.check_state()  # reading may have taken a while
        response = await service.run(self.job, self.client, lambda: _gone(self.http), self.spans.append)
        start_ns = time.time_ns()
        packed = await run_in_threadpool(response.encode)
        self.spans.append(Span("pack", start_ns, time.time_ns()))
        return packed

    def _account(self, outcome: str) -> None:
        """Metrics, one log line and spans: sizes and durations, the same fields whatever was asked for."""
        service, end_ns = self.service, time.time_ns()
        service.metrics.requests.labels(outcome).inc()
        if outcome in REFUSALS:
            service.metrics.rejected.labels(outcome).inc()
        fields: dict[str, object] = {"request": self.http.state.request_id, "client": self.client.name}
        fields |= {"outcome": outcome, "seconds": (end_ns - self.started_ns) / 1e9}
        if self.job is not None:
            request = self.job.request
            fields |= {"candidates": len(request.candidates), "steps": request.handoff, "rows": self.job.plan.rows}
            service.tracer.record(self.job, outcome, self.started_ns, end_ns, self.spans)
        log.info("denoise", **fields)


def _add_readings(app: FastAPI, service: Service, auth: Authenticator, metrics_here: bool) -> None:
    @app.get(HEALTH_PATH)
    async def healthz() -> dict[str, str]:
        if service.state == "dead":  # whoever probes this restarts the process
            service.check_state()
        return {"status": "ok"}

    @app.get(READY_PATH)
    async def readyz() -> dict[str, str]:
        service.check_state()
        return {"status": "ready"}

    @app.get(CAPABILITIES_PATH)
    async def capabilities() -> HttpResponse:
        return HttpResponse(service.capabilities().encode(), media_type="application/json")

    described = document(service.capabilities(), guarded=not auth.open, metrics_here=metrics_here)

    @app.get(OPENAPI_PATH)
    async def openapi() -> HttpResponse:
        return HttpResponse(described, media_type="application/json")

    if metrics_here:

        @app.get(METRICS_PATH)
        async def metrics() -> HttpResponse:
            return HttpResponse(service.metrics.render(), headers={"Content-Type": METRICS_TYPE})


def _check_headers(http: HttpRequest, limit: int) -> None:
    """ProblemError for what can be refused before a byte of the body is read."""
    declared = http.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise ProblemError("body-too-large", f"the body is over {limit} bytes")
    media_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" or http.headers.get("content-encoding", "identity") != "identity":
        raise ProblemError("unsupported-media-type", "send the request as application/json, not compressed")
    if http.url.query:  # addresses end up in the logs of whatever stands in between
        raise ProblemError("invalid-request", "this address takes no query; the request is its body")


async def _read_body(http: HttpRequest, limit: int, timeout_s: float) -> bytes:
    chunks, size = [], 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in http.stream():
                size += len(chunk)
                if size > limit:
                    raise ProblemError("body-too-large", f"the body is over {limit} bytes")
                chunks.append(chunk)
    except TimeoutError:
        raise ProblemError(
            "body-timeout", f"the body took more than {timeout_s:g} s to arrive", {"Connection": "close"}
        ) from None
    return b"".join(chunks)


async def _gone(http: HttpRequest) -> None:
    """Ends when the client hangs up. The body has been read, so that is all there is to hear."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ProblemError)
    async def on_problem(_: HttpRequest, error: ProblemError) -> HttpResponse:
        return respond(error)

    @app.exception_handler(HTTPException)
    async def on_http_error(_: HttpRequest, error: HTTPException) -> HttpResponse:
        slug = _STATUS_SLUGS.get(error.status_code, "invalid-request")
        return respond(ProblemError(slug, f"{OPENAPI_PATH} says what there is", dict(error.headers or {})))
