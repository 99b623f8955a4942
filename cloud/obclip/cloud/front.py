"""What every HTTP request goes through first: an id, its client, and a net for whatever falls out of the back."""

from __future__ import annotations

import secrets
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from obclip.cloud.auth import Authenticator
from obclip.cloud.logs import Log
from obclip.cloud.metrics import Metrics
from obclip.cloud.responses import ProblemError, respond
from obclip.core.wire import CAPABILITIES_PATH, DENOISE_PATH

log = Log("obclip.cloud.http")

HEALTH_PATH, READY_PATH, METRICS_PATH, OPENAPI_PATH = "/healthz", "/readyz", "/metrics", "/v1/openapi.json"
# Probes of load balancers and orchestrators carry no keys, and learn one word here.
OPEN_PATHS = frozenset({HEALTH_PATH, READY_PATH})
_PATHS = OPEN_PATHS | {METRICS_PATH, OPENAPI_PATH, CAPABILITIES_PATH, DENOISE_PATH}


class Front:
    """Outermost, and plain ASGI: an exception is answered and logged here, without its message, before Starlette's or
    uvicorn's own handlers would print it whole."""

    def __init__(self, app: ASGIApp, auth: Authenticator, metrics: Metrics) -> None:
        self.app, self.auth, self.metrics = app, auth, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # random, never the client's own word for it: an id goes to the logs
        state = scope.setdefault("state", {})
        request_id = state["request_id"] = secrets.token_hex(8)
        status = 0

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["X-Request-Id"] = request_id
                headers["Cache-Control"] = "no-store"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        path = scope["path"] if scope["path"] in _PATHS else "other"  # an address could hold a prompt
        try:
            self._authorise(scope, path)
            await self.app(scope, receive, answer)
        except ProblemError as error:
            self.metrics.rejected.labels(error.problem.slug).inc()
            await respond(error)(scope, receive, answer)
        except Exception as error:
            log.error("unexpected", error, request=request_id, path=path)
            if status:
                raise _BrokenError from None  # the answer has begun: the server cuts the connection
            await respond(ProblemError("internal", "an unexpected error; the server goes on"))(scope, receive, answer)
        log.debug("answered", request=request_id, method=_method(scope), path=path, status=status)

    def _authorise(self, scope: Scope, path: str) -> None:
        if path in OPEN_PATHS:
            return
        client = self.auth.client(Headers(scope=scope).get("authorization", ""))
        if client is None:
            raise ProblemError("unauthorized", "send `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"})
        if path == METRICS_PATH and not client.metrics:
            raise ProblemError("forbidden", "metrics tell of other clients' work; they need a key made with --metrics")
        if path in (CAPABILITIES_PATH, DENOISE_PATH) and not client.denoise:
            raise ProblemError("forbidden", "this key reads metrics only; make another with `obclip keys add`")
        scope["state"]["client"] = client


class _BrokenError(Exception):
    """Ends a half-sent answer; says nothing."""


def _method(scope: Scope) -> str:
    known = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "QUERY", "CONNECT")
    return scope["method"] if scope["method"] in known else "other"
