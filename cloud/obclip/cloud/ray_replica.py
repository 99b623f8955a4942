"""One replica under Ray Serve: a process with the model, its engine and the application. Ray need not be installed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from obclip.cloud import logs
from obclip.cloud.serve import ServeOptions, build_app
from obclip.cloud.server import metrics_server
from obclip.core.errors import RunError

_METRICS_PORTS = 64
log = logs.Log("obclip.cloud.ray")


class Replica:
    """One process with a model of its own. Ray calls all of this by name; the app is served once it is warmed up."""

    def __init__(self, options: ServeOptions, token: str | None) -> None:
        logs.configure(options.log_format, options.log_level)
        self._app = build_app(options, token)
        self._service = self._app.state.service
        self._open = ExitStack()  # for as long as the process lives
        url = self._open.enter_context(_first_metrics_port(options.metrics_port, self._service.metrics.registry))
        log.info("replica", process=os.getpid(), metrics=url or "off")

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def check_health(self) -> None:
        """Raises once the device has failed; Ray then starts another replica in its place."""
        if self._service.state == "dead":
            raise RunError("the device failed")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `replicas_wanted` is told of each replica."""
        return {"rows_waiting": float(self._service.engine.load.rows_waiting)}

    def status(self) -> tuple[int, int]:
        """The process's id, and how many requests it has in work."""
        return os.getpid(), self._service.in_flight

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._service.drain()


def replicas_wanted(seen: Any) -> tuple[int, dict[str, Any]]:
    """Ray's autoscaling policy: enough for the requests in hand, and one more while rows wait in any replica.

    seen: ray.serve's AutoscalingContext. Ray itself keeps to the bounds and waits before it acts.
    """
    wanted = math.ceil(seen.total_num_requests / seen.config.target_ongoing_requests)
    if sum(seen.aggregated_metrics.get("rows_waiting", {}).values()) > 0:
        wanted = max(wanted, seen.current_num_replicas + 1)
    return wanted, {}


@contextmanager
def _first_metrics_port(port: int | None, registry: CollectorRegistry) -> Iterator[str | None]:
    """Each replica of a machine takes the first free port from `port` on; one that replaces another, its port."""
    with ExitStack() as stack:
        for candidate in range(port or 0, (port or 0) + _METRICS_PORTS):
            try:
                url = stack.enter_context(metrics_server(candidate if port is not None else None, registry))
            except (RunError, OSError):
                continue
            yield url
            return
        raise RunError(f"no port from {port} on is free for metrics")
