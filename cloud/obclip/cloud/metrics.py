"""Prometheus metrics: sizes, durations and outcomes. No label is a prompt, a candidate, a client or a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from obclip.cloud.work import Event, Load

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
_ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class Metrics:
    """In a registry of their own. `on_event` takes what an engine tells; the gauges are read when they are asked for.

    load: of the engine. state: the service's, of "starting", "ready", "draining", "dead".
    """

    def __init__(self, load: Callable[[], Load], state: Callable[[], str]) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("obclip_requests", "Denoise requests answered, by outcome", ["outcome"], **own)
        self.rejected = Counter("obclip_rejected", "Requests refused before any work, by reason", ["reason"], **own)
        self.failed = Counter("obclip_failed", "Requests the engine failed on, by reason", ["reason"], **own)
        self.cancelled = Counter("obclip_cancelled", "Requests given up because the client went away", **own)
        self.timeouts = Counter("obclip_timeouts", "Requests out of time, in the queue or in service", ["where"], **own)
        self.nan_reruns = Counter("obclip_nan_reruns", "Rows run again in float32 for numbers not finite", **own)
        self.oom = Counter("obclip_out_of_memory", "Batches that did not fit into memory", **own)
        self.rows = Counter("obclip_unet_rows", "Rows run through the UNet, by part", ["part"], **own)
        self.step_rows = Histogram("obclip_step_rows", "Rows in one step, by part", ["part"], buckets=_ROWS, **own)
        self.step_seconds = Histogram(
            "obclip_step_seconds", "Time of one step, by part of the UNet", ["part"], buckets=_SECONDS, **own
        )
        self.queue_wait = Histogram(
            "obclip_queue_wait_seconds", "From taking a request in to its turn", buckets=_SECONDS, **own
        )
        self.seconds = Histogram("obclip_denoise_seconds", "Time in the model per request", buckets=_SECONDS, **own)
        self.registry.register(_Gauges(load, state))

    def on_event(self, event: Event) -> None:
        """Count `event`. Called from any thread."""
        values = event.values
        match event.kind:
            case "started":
                self.queue_wait.observe(float(values["wait_s"]))
            case "step":
                part, rows = str(values["part"]), float(values["rows"])
                self.rows.labels(part).inc(rows)
                self.step_rows.labels(part).observe(rows)
                self.step_seconds.labels(part).observe(float(values["seconds"]))
            case "finished":
                self.seconds.observe(float(values["seconds"]))
            case "failed":
                self.failed.labels(str(values.get("reason", "other"))).inc()
            case "cancelled":
                self.cancelled.inc()
            case "timeout":
                self.timeouts.labels(str(values.get("reason", "queue"))).inc()
            case "nan_rerun":
                self.nan_reruns.inc(float(values.get("rows", 1)))
            case "oom":
                self.oom.inc()

    def render(self) -> bytes:
        """The text format, as Prometheus scrapes it."""
        return bytes(generate_latest(self.registry))


class _Gauges(Collector):
    def __init__(self, load: Callable[[], Load], state: Callable[[], str]) -> None:
        self._load, self._state = load, state

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # nothing to check for duplicates, and no engine to ask yet

    def collect(self) -> Iterator[GaugeMetricFamily]:
        load, state = self._load(), self._state()
        for name, text, value in (
            ("obclip_requests_waiting", "Requests waiting for their turn", load.requests_waiting),
            ("obclip_requests_running", "Requests in work", load.requests_running),
            ("obclip_rows_waiting", "Rows of the requests that wait", load.rows_waiting),
            ("obclip_rows_running", "Rows in work", load.rows_running),
            ("obclip_row_capacity", "Rows that may wait", load.row_capacity),
            ("obclip_ready", "1 if new requests are taken", state == "ready"),
            ("obclip_draining", "1 while the server finishes its work to go down", state == "draining"),
            ("obclip_dead", "1 once the device has failed", state == "dead"),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
