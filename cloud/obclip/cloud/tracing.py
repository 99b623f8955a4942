"""OpenTelemetry spans, if an exporter is configured: one per request, and below it queue, encode, denoise and pack.

Attributes are sizes and the outcome; no span holds a prompt, an exception or anything about one candidate.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from obclip.cloud.work import Job, Span
from obclip.core.errors import ModelMissingError

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Tracer:
    """provider: an OpenTelemetry tracer provider; None records nothing."""

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("obclip.cloud")

    def record(self, job: Job, outcome: str, start_ns: int, end_ns: int, parts: Iterable[Span]) -> None:
        """One request that is over. outcome: "ok", or the kind of the problem it ended with."""
        if self._tracer is None:
            return
        from opentelemetry import context, trace

        attributes = {
            "obclip.candidates": len(job.request.candidates),
            "obclip.steps": job.request.handoff,
            "obclip.rows": job.plan.rows,
            "obclip.outcome": outcome,
        }
        root = self._tracer.start_span("request", context.Context(), start_time=start_ns, attributes=attributes)
        if outcome != "ok":
            root.set_status(trace.StatusCode.ERROR, outcome)
        inside = trace.set_span_in_context(root, context.Context())
        for part in parts:
            self._tracer.start_span(part.name, inside, start_time=part.start_ns).end(part.end_ns)
        root.end(end_ns)

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def configured_tracer(version: str) -> Tracer:
    """What the environment asks for: spans over OTLP if it names an endpoint, by OpenTelemetry's own variables, else
    none. ModelMissingError if it does and the extra is not installed."""
    if not any(os.environ.get(name) for name in _ENDPOINTS) or os.environ.get("OTEL_SDK_DISABLED", "") == "true":
        return Tracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ModelMissingError(f"OTEL_… is set, and spans need {error.name}: pip install 'obclip[otel]'") from error
    name = os.environ.get("OTEL_SERVICE_NAME", "obclip")
    # not the global provider: what other libraries would trace by themselves is not known to be free of prompts
    provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": version}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)
